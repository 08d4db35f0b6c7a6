"""The command line. It may import every package; nothing imports it."""

from fedkit.cli.app import main

__all__ = ["main"]
