"""From a float graph to an int8 graph: ranges, scales, fitted integers."""

from typing import TYPE_CHECKING

from fedkit.core import moved

if not TYPE_CHECKING:
    __getattr__ = moved.names(__name__)  # the module that had this name until 0.1
