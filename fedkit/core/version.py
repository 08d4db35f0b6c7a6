"""The version of fedkit."""

__version__ = "0.1.0"
