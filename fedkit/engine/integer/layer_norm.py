"""Layer norms: what a block's deviation is worth, in integers.

A block is an example, or a group of its channels. Its values v are integers, n of them. With
S = sum v, the deviation comes from an exact integer, for L1 sum |n v - S|, for L2
n sum v^2 - S^2: n^2 times the mean absolute deviation or the variance. One integer division turns
it into a multiplier and a shift, and

    hat = (multiplier * (v - centre) + offset + half) >> shift

is the normalised value with `HAT_BITS` bits behind the point, where centre = floor(S / n) and
offset stands for the rest of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkit.core.numerics import K
from fedkit.engine.integer.constants import WIDE, Ints, to_int32

HAT_BITS = 12
"""Bits of a normalised value behind the point; as it is int16, 8 deviations are kept."""

SCALE_SHIFT = 15
"""Shift of what a normalised value becomes by its element's scale and offset."""

FACTOR_SHIFT = 14
"""Shift of what a gradient becomes by its element's scale."""

MOST_SHIFT = 29
"""Largest shift of a normalised value: what is shifted stays within int32."""

_MOST_EPS = 2.0**60


@dataclass(frozen=True)
class Deviation:
    """How an example's exact integer becomes a multiplier.

    Attributes:
        l1: Whether it is that of an L1 norm.
        eps: What is added to it.
        numerator: 2^30 to 2^31 - 1.
        exponent: 2^HAT_BITS deviations are numerator * 2^-exponent / integer, or its root for L2.
    """

    l1: bool
    eps: int
    numerator: int
    exponent: int


@dataclass(frozen=True)
class Scale:
    """Makes raw of normalised values: (a * hat + b + half) >> SCALE_SHIFT; int32 [elements]."""

    a: Ints
    b: Ints


@dataclass(frozen=True)
class Centring:
    """How each example is normalised, int32 [examples].

    Attributes:
        centre: floor of its mean.
        a: Multiplier.
        b: Offset.
        shift: 0 to MOST_SHIFT.
    """

    centre: Ints
    a: Ints
    b: Ints
    shift: Ints


def most_of(count: int) -> int:
    """Return the largest value to be normalised among `count`.

    Differences of two stay within int16, and `count` times one within int32.
    """
    return min(WIDE // 2, 2**29 // count)


def deviation_constants(l1: bool, count: int, eps: float) -> Deviation:
    """Return how to normalise `count` values; eps is in their steps, for L2 in their squares."""
    # The integer of L1 is that much larger than n^2 times a deviation, that of L2 the square of n.
    share = count**2 / K if l1 else float(count) ** 2
    fraction, exponent = math.frexp(2.0**HAT_BITS * (share if l1 else count))
    numerator = min(round(math.ldexp(fraction, 31)), 2**31 - 1)
    return Deviation(l1, round(min(share * eps, _MOST_EPS)), numerator, 31 - exponent)


def reciprocal(size: int, how: Deviation) -> tuple[int, int]:
    """Return (multiplier, shift): what a step of v is worth, in steps of 2^-HAT_BITS deviations.

    The multiplier has 15 bits. No deviation counts for less than an eighth of a step of v.

    Args:
        size: The exact integer, 0 to 2^60.
        how: See `deviation_constants`.
    """
    size = max(size + how.eps, 1)
    if how.l1:
        exponent = size.bit_length() - 31
        size = size >> exponent if exponent > 0 else size << -exponent
    else:
        exponent = -((62 - size.bit_length()) // 2)
        size = math.isqrt(size << -2 * exponent)
    bits = 14 if how.numerator >= size else 15
    shift = bits + how.exponent + exponent
    return ((how.numerator << bits) // size, shift) if shift >= 0 else (WIDE, 0)


def centring_of(total: int, multiplier: int, shift: int, count: int) -> tuple[int, int, int, int]:
    """Return (centre, a, b, shift) of an example whose values sum to `total`."""
    centre, rest = divmod(total, count)
    lost = max(shift - MOST_SHIFT, 0)
    a = multiplier >> lost
    return centre, a, -((a * rest + count // 2) // count), shift - lost


def stack(rows: Sequence[tuple[int, ...]]) -> list[Ints]:
    """Return one array for each place in the rows."""
    return [to_int32(column) for column in np.array(rows, np.int64).T]
