"""Softmax in integers: scores become shares of 1, by powers of two.

Below the largest score of a row, a score s gives the code

    top * 2^-octaves, octaves = ((below << left) * a + half) >> 15, in steps of 2^-10

by a polynomial of third degree, within 2e-4 of the power; scores further below than `cut` give 0.
A share is its code divided by the sum of them, by one integer division of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import shift_right_half_up
from fedkit.engine.integer.constants import WIDE

Array = NDArray[np.int64]

_POINT = 10
"""Bits of octaves behind the point."""

_OCTAVES = 16
"""Codes this far below the largest are 0."""

_ONE = 15
"""Bits of a power, and of a multiplier, behind the point."""

_TERMS = (22659, 7561, 1286)
"""2^-f = 1 - f (c1 - f (c2 - f c3)) in steps of 2^-15, exact at 0 and 1."""

MOST_SCORE = WIDE // 2
"""Largest magnitude of a score."""

MOST_BITS = 14
"""Bits of a share behind the point, at most."""


@dataclass(frozen=True)
class SoftmaxShares:
    """How the scores of a row become shares.

    Attributes:
        cut: Scores further below the largest give 0; 1 to 32767.
        left: cut << left has 15 bits.
        a: Multiplier, 0 to 32767.
        top: Code of the largest score, 2^bits - 1 of so many bits, 15 at most.
        bits: Of shares behind the point, 1 to 14.
    """

    cut: int
    left: int
    a: int
    top: int
    bits: int

    def of(self, scores: Array, seen: NDArray[np.bool_] | None = None) -> Array:
        """Return shares, which sum to 2^bits but for what rounding adds.

        Args:
            scores: [..., n], each at most `MOST_SCORE` in magnitude, so that differences fit int16.
            seen: Which of them count, at least one of each row; the others have no share.
        """
        counted = np.ones(scores.shape[-1:], np.bool_) if seen is None else seen
        most = np.where(counted, scores, np.iinfo(np.int32).min).max(-1, keepdims=True)
        codes = np.where(counted, self._codes(most - scores), 0)
        total = codes.sum(-1, keepdims=True)
        length = np.frexp(total.astype(np.float64))[1].astype(np.int64)
        factor = (np.left_shift(1, length + _ONE - 1) - 1) // total
        by = np.broadcast_to(length + _ONE - 1 - self.bits, codes.shape)
        return shift_right_half_up(codes * factor, by)

    def _codes(self, below: Array) -> Array:
        near = np.clip(below, 0, self.cut) << self.left
        octaves = shift_right_half_up(near * self.a, _ONE)
        whole, f = octaves >> _POINT, octaves & (2**_POINT - 1)
        power = np.zeros_like(f)
        for term in reversed(_TERMS):
            power = shift_right_half_up(f * (term - power), _POINT)
        power = 2**_ONE - power
        codes = shift_right_half_up(power * self.top, _ONE + whole)
        return np.where(below > self.cut, 0, codes)


def shares_of(unit: float, top_bits: int, bits: int) -> SoftmaxShares:
    """Return how scores become shares.

    Args:
        unit: What a step of a score is worth, at least 0.
        top_bits: Of codes, 2 to 15.
        bits: See `SoftmaxShares.bits`.
    """
    rate = min(unit / math.log(2), float(_OCTAVES))
    cut = WIDE if rate * WIDE <= _OCTAVES else int(_OCTAVES // rate)
    left = _ONE - cut.bit_length()
    a = min(round(math.ldexp(rate, _POINT + _ONE - left)), WIDE)
    return SoftmaxShares(cut, left, a, 2**top_bits - 1, bits)
