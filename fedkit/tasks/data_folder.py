"""Where a user's own copies of data sets lie."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder(name: str) -> Path:
    """Return `$FEDKIT_DATA/NAME`, or `data/NAME` where the variable is not set."""
    return Path(os.environ.get("FEDKIT_DATA") or "data") / name
