"""How the gradients of a layer's output are scaled before they are rounded to a few bits.

The product with the weights sums over output channels, in int32 and without a scale per channel.
So a channel's codes are multiplied by an integer `factor` first, and what a factor may be is all
that tells the rules apart:

  per-tensor   1
  shiftquant   powers of two, up to what keeps code * factor within int8
  per-channel  any integer up to 2047 / code, which int16 operands take and int8 ones do not
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedkit.integers.format import exponents, groups_that_fit

Reals = NDArray[np.float64]

_FINEST = 2047
"""Largest code * factor of per-channel scales."""

Rule = Callable[[Reals, int], tuple[Reals, float]]
"""(largest magnitude per channel, bits) -> (factor per channel, unit of code * factor)."""


def per_tensor(ranges: Reals, bits: int) -> tuple[Reals, float]:
    """Scale all channels by the largest."""
    return np.ones(len(ranges)), _largest(ranges) / _most(bits)


def shiftquant(ranges: Reals, bits: int) -> tuple[Reals, float]:
    """Scale each channel by a power of two, see `fedkit.integers.format`."""
    groups = groups_that_fit(bits)
    shifts = groups - 1 - exponents(ranges, groups).astype(np.int32)
    return np.ldexp(1.0, shifts), _largest(ranges) / _most(bits) * 2.0 ** (1 - groups)


def per_channel(ranges: Reals, bits: int) -> tuple[Reals, float]:
    """Scale each channel by its own range, rounded up to a step of the finest factor."""
    finest, largest = _FINEST // _most(bits), _largest(ranges)
    factor = np.maximum(np.ceil(ranges / largest * finest), 1.0)
    return factor, largest / _most(bits) / finest


RULES: dict[str, Rule] = {
    "per-tensor": per_tensor,
    "shiftquant": shiftquant,
    "per-channel": per_channel,
}

FIT_INT8 = ("per-tensor", "shiftquant")
"""The rules whose codes times their factors fit int8."""


def _most(bits: int) -> int:
    return int(2 ** (bits - 1)) - 1


def _largest(ranges: Reals) -> float:
    return float(ranges.max()) or 1.0
