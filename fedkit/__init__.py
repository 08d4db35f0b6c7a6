"""Federated pruning for small devices: the fleet learns here (`edge` exports, `sim` simulates)."""

from fedkit.core.version import __version__

__all__ = ["__version__"]
