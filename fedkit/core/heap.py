"""How the C library keeps memory that was freed."""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_LARGE = 128 << 10


def return_large_blocks() -> None:
    """Let every freed block of 128 kB or more go back to the system at once, for a small process.

    glibc begins so, but raises that limit up to 32 MB with the blocks it sees freed; from then on
    such blocks lie in its heap, and a small one behind them keeps them all. Elsewhere nothing
    happens. A process that makes and frees many large arrays, as torch does, pays with time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
