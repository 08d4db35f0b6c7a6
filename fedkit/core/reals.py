"""exp and log in float64, from operations that every machine rounds alike.

The functions of a C library differ in the last bit from one processor or system to the next. These
are sums, products, quotients and scalings by powers of two, in one order, each by numpy for itself:
they give the same bits everywhere.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]

# log 2 in two parts: the first ends in so many zeros that whole multiples of it are exact.
_LOG2 = float.fromhex("0x1.62e42fefa39efp-1")
_LOG2_FIRST = float.fromhex("0x1.62e42fee00000p-1")
_LOG2_REST = float.fromhex("0x1.a39ef35793c76p-33")
_LOWEST, _HIGHEST = -746.0, 710.0
"""exp of less is 0, of more infinite."""

_EXP = [1.0 / math.factorial(n) for n in range(14)]
_LOG = [2.0 / n for n in range(1, 25, 2)]


def exp(x: Reals) -> Reals:
    """Return e^x within 2^-51 of the value where that is a normal number; NaN stays NaN."""
    within = np.fmin(np.fmax(x, _LOWEST), _HIGHEST)
    octaves = np.rint(within / _LOG2)
    rest = (within - octaves * _LOG2_FIRST) - octaves * _LOG2_REST
    power = np.full_like(rest, _EXP[-1])
    for factor in reversed(_EXP[:-1]):
        power *= rest
        power += factor
    whole = octaves.astype(np.int64)
    half = whole >> 1
    with np.errstate(over="ignore", under="ignore"):
        # In two steps, of which only the second can leave the normal numbers, and rounds.
        power *= _two_to(half)
        power *= _two_to(whole - half)
    return np.where(np.isnan(x), x, power)


def _two_to(octaves: NDArray[np.int64]) -> Reals:
    """Return 2^octaves, for -1022 .. 1023."""
    return ((octaves + 1023) << 52).view(np.float64)


def log(x: Reals) -> Reals:
    """Return the natural logarithm within 2^-50 of max(1, |log x|); x is above 0, or NaN."""
    fraction, exponent = np.frexp(x)
    is_low = fraction < math.sqrt(0.5)
    fraction = np.where(is_low, 2.0 * fraction, fraction)
    octaves: Reals = (exponent - is_low).astype(np.float64)
    s = (fraction - 1.0) / (fraction + 1.0)
    square = s * s
    series = np.full_like(s, _LOG[-1])
    for factor in reversed(_LOG[:-1]):
        series *= square
        series += factor
    return np.asarray(octaves * _LOG2_FIRST + (series * s + octaves * _LOG2_REST))
