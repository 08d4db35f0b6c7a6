"""What runs on a device: its data, its memory, its answer to a message."""

from typing import TYPE_CHECKING

from fedkit.core import moved

if not TYPE_CHECKING:
    __getattr__ = moved.names(__name__)  # the module that had this name until 0.1
