"""Flags as bits: a weight takes a bit instead of a byte, and only bytes that hold one are unpacked.

A layer of n flags is uint8 [ceil(n / 8)]: the first flag is the highest bit of the first byte, and
bits behind the last flag are 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]


def pack(flags: NDArray[np.bool_]) -> Bits:
    """Pack flags of any shape, in row-major order."""
    return np.packbits(flags)


def unpack(bits: Bits, count: int) -> NDArray[np.bool_]:
    """Invert `pack`, bool [count]."""
    return np.unpackbits(bits, count=count).view(np.bool_)


def ones(bits: Bits) -> int:
    """Return how many flags are set."""
    return int.from_bytes(bits.tobytes(), "little").bit_count()


def inverted(bits: Bits, count: int) -> Bits:
    """Return the complement of `count` flags."""
    return trimmed(~bits, count)


def trimmed(bits: Bits, count: int) -> Bits:
    """Return a copy with bits behind the last of `count` flags set to 0."""
    found = bits.copy()
    if count % 8:
        found[-1:] &= np.uint8(0xFF << (8 - count % 8) & 0xFF)
    return found


def positions(bits: Bits) -> NDArray[np.int64]:
    """Return where flags are set, ascending.

    >>> positions(pack(np.array([False, True, False, False, False, False, False, False, True])))
    array([1, 8])
    """
    filled = np.flatnonzero(bits)
    if 2 * len(filled) > len(bits):
        return np.flatnonzero(np.unpackbits(bits))
    inside = np.flatnonzero(np.unpackbits(bits[filled]))
    return np.asarray(8 * filled[inside >> 3] + (inside & 7))


def from_positions(where: NDArray[np.integer[Any]], count: int) -> Bits:
    """Invert `positions`, for `count` flags; the positions are ascending, each once."""
    bits = np.zeros(-(-count // 8), np.uint8)
    if len(where):
        byte, flag = where >> 3, (128 >> (where & 7)).astype(np.uint8)
        first = np.flatnonzero(np.diff(byte, prepend=-1))
        bits[byte[first]] = np.bitwise_or.reduceat(flag, first)
    return bits


def at(bits: Bits, where: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Return the flags at some positions."""
    return np.asarray(bits[where >> 3] & (128 >> (where & 7)).astype(np.uint8), np.bool_)
