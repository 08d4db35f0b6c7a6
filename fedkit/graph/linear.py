"""Linear resizes: each place of a result lies between two places of an axis.

Places of the result have coordinates on the axis at equal steps. Where a step is q / p, in lowest
terms, every p-th place lies between two others at the same distances, q places further: so a result
is p maps side by side, each a convolution of stride q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fedkit.graph import ir

Pair = tuple[int, int]


@dataclass(frozen=True)
class Coordinates(ir.Attributes):
    """Where on each axis of a map the rows and columns of a result lie, from 0 to size - 1."""

    rows: tuple[float, ...]
    columns: tuple[float, ...]


def between(coordinates: tuple[float, ...], size: int) -> ir.FloatArray:
    """Return how much of each place of an axis is in each place of a result, [out, size]."""
    found = np.zeros((len(coordinates), size))
    for row, coordinate in zip(found, coordinates, strict=True):
        first = min(math.floor(coordinate), size - 1)
        row[first] += 1 - (coordinate - first)
        row[min(first + 1, size - 1)] += coordinate - first
    return found.astype(np.float32)


@dataclass(frozen=True)
class ResizedAxis:
    """Place i of a result is at `start + step * i` of an axis, or at the end that is nearer.

    Attributes:
        size: Of the axis.
        out: Of the result.
        start: Of place 0.
        step: Above 0.
    """

    size: int
    out: int
    start: Fraction
    step: Fraction

    @property
    def coordinates(self) -> tuple[float, ...]:
        """Where each place of the result is."""
        exact = (self.start + self.step * i for i in range(self.out))
        return tuple(float(min(max(each, Fraction(0)), Fraction(self.size - 1))) for each in exact)

    @property
    def phases(self) -> int:
        """How many maps the result is."""
        return 1 if self.out == 1 else self.step.denominator

    @property
    def stride(self) -> int:
        """Of each map."""
        return 1 if self.out == 1 else self.step.numerator

    @property
    def _first(self) -> int:
        """The place that the first one of the result sees first."""
        return math.floor(self.start)

    @property
    def kernel(self) -> int:
        """Places that one of every map sees."""
        last = self.start + self.step * (self.phases - 1)
        return math.ceil(last) - self._first + 1

    def weights(self) -> ir.FloatArray:
        """Return the kernels, [phases, kernel]."""
        found = np.zeros((self.phases, self.kernel))
        for phase, row in enumerate(found):
            whole, part = divmod(self.start - self._first + self.step * phase, 1)
            row[whole] += float(1 - part)
            if part:
                row[whole + 1] += float(part)
        return found.astype(np.float32)

    @property
    def places(self) -> list[int]:
        """Which places of the axis the maps read, those beyond its ends as the last ones."""
        steps = -(-self.out // self.phases)
        first = self._first
        last = first + self.stride * (steps - 1) + self.kernel
        return [min(max(place, 0), self.size - 1) for place in range(first, last)]
