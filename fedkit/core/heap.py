"""How the C library keeps memory that was freed."""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_LARGE = 32 << 10
_small = False
"""Whether this process is to be small, as `keep_small` asked."""


def keep_small() -> None:
    """Let every freed block of 32 kB or more go back to the system at once, for a small process.

    glibc begins with 128 kB, and raises that limit up to 32 MB with the blocks it sees freed; from
    then on such blocks lie in its heap, and a small one behind them keeps them all. Elsewhere
    nothing happens. A process that makes and frees many large arrays, as torch does, pays with
    time.
    """
    global _small
    _small = True
    _call("mallopt", _MMAP_THRESHOLD, _LARGE)


def is_small() -> bool:
    """Say whether this process is to be small."""
    return _small


def return_free_blocks() -> None:
    """In a process that is to be small, give back what lies free between smaller blocks, too.

    For moments after which much memory is taken at once, or none for long.
    """
    if _small:
        _call("malloc_trim", 0)


def _call(name: str, *numbers: int) -> None:
    """Call a function of the C library, if this one has it."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*numbers)
