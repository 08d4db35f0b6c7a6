"""Sums without rounding, so that no order and no grouping of what is added changes them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]

_LOWEST = 1126
"""Every float64 is a whole multiple of 2^-1126 as numpy takes it apart: 53 bits, exponent."""

_HALF = 26  # bits


class ExactSum:
    """Exact sums of float64 numbers, one per column.

    Args:
        columns: How many.
    """

    def __init__(self, columns: int = 1) -> None:
        self._sums: NDArray[Any] = np.zeros(columns, object)
        self._odd = 0.0

    def add(self, values: Reals) -> None:
        """Add numbers [n, columns]; NaN and infinities count for all columns."""
        is_number = np.isfinite(values)
        if not is_number.all():
            self._odd += float(values[~is_number].sum())
            values = np.where(is_number, values, 0.0)
        fraction, exponent = np.frexp(values)
        whole = np.ldexp(fraction, 53).astype(np.int64)
        lowest, highest = int(exponent.min(initial=0)), int(exponent.max(initial=0))
        rows, columns = highest - lowest + 1, len(self._sums)
        place = (exponent.astype(np.int64) - lowest) * columns + np.arange(columns)
        # Sums of 27 bits are exact in the float64 of `bincount`, up to 2^26 of them.
        high, low = (
            np.bincount(place.ravel(), part.ravel(), rows * columns).reshape(rows, columns)
            for part in (whole >> _HALF, whole & (2**_HALF - 1))
        )
        for row in np.flatnonzero(high.any(axis=1) | low.any(axis=1)).tolist():
            sums = _integers(high[row]) * 2**_HALF + _integers(low[row])
            self._sums = self._sums + sums * (1 << (row + lowest - 53 + _LOWEST))

    @property
    def odd(self) -> float:
        """The sum of all that was no number: 0, an infinity or NaN."""
        return self._odd

    @property
    def sums(self) -> list[Fraction]:
        """The exact sums of all numbers that are finite."""
        return [Fraction(int(total), 1 << _LOWEST) for total in self._sums]


def _integers(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.int64).astype(object)


def squares(values: Reals) -> tuple[Reals, Reals]:
    """Return two parts whose sum is exactly the square (Dekker, 1971), where none overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide = 134217729.0 * values
        high: Reals = wide - (wide - values)
        low: Reals = values - high
        square: Reals = values * values
        rest: Reals = ((high * high - square) + 2.0 * high * low) + low * low
        return square, rest
