"""Sizes of memory as people write them."""

from __future__ import annotations

import math
import re

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as 64MB, 1.5 GB, 512KiB or 4096.

    >>> parse_bytes("64MB"), parse_bytes("1.5 GiB"), parse_bytes("4096")
    (64000000, 1610612736, 4096)

    Raises:
        ValueError: It is none, or not one byte.
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    unit = _UNITS.get((found[2] or "b").lower()) if found else None
    if found is None or unit is None:
        raise ValueError(
            f"{text!r} is no size; give a number and a unit, such as 64MB, 1.5GB or 512KiB"
        )
    size = math.floor(float(found[1]) * unit)
    if size < 1:
        raise ValueError(f"{text!r} is less than a byte; give more")
    return size
