"""Federated pruning for small devices: the fleet learns here (`edge` exports, `sim` simulates)."""

from fedkit.core import moved
from fedkit.core.version import __version__

__all__ = ["__version__"]

moved.install()
