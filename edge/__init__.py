"""The model leaves the fleet: torch module -> integer graph -> artifact for one device target."""

from fedkit.core import moved

moved.install()
