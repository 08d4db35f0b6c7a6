"""Federated pruning for small devices: the fleet learns here (`edge` exports, `sim` simulates)."""

__version__ = "0.1.0"
