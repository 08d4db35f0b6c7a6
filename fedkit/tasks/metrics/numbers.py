"""Metrics of numbers, whose sums are exact."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import TaskError
from fedkit.core.reals import Reals, exp, log
from fedkit.tasks.metrics.measure import (
    Accumulator,
    Measure,
    check_indices,
    check_places,
    nothing_to_measure,
)
from fedkit.tasks.metrics.sums import ExactSum, squares


def differences(name: str, outputs: NDArray[Any], targets: NDArray[Any]) -> tuple[Reals, Reals]:
    """Return outputs - targets and targets, float64 of one shape.

    Raises:
        TaskError: They have different shapes.
    """
    if outputs.shape != targets.shape or outputs.ndim == 0:
        raise TaskError(
            f"outputs {outputs.shape} and targets {targets.shape} have different shapes; {name} "
            "compares each output with a number: reshape the targets as the outputs"
        )
    wanted = targets.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return outputs.astype(np.float64) - wanted, wanted


class MeanAccumulator(Accumulator):
    """The mean of what a function gives for outputs and targets.

    Args:
        measure: Whose `terms` these are.
    """

    def __init__(self, measure: MeanOf) -> None:
        self._measure, self._sum, self._count = measure, ExactSum(), 0

    def add(self, outputs: NDArray[Any], targets: NDArray[Any]) -> None:
        """See `Accumulator`."""
        with np.errstate(over="ignore", invalid="ignore"):
            terms = self._measure.terms(np.asarray(outputs), np.asarray(targets))
        self._sum.add(terms.reshape(-1, 1))
        self._count += terms.size

    def value(self) -> float:
        """See `Accumulator`."""
        if self._count == 0:
            raise nothing_to_measure(self._measure.name)
        mean = self._sum.odd or rounded(self._sum.sums[0] / self._count)
        return self._measure.of_mean(mean)


def rounded(exact: Fraction) -> float:
    """Return the nearest float; an infinity beyond the largest."""
    try:
        return float(exact)
    except OverflowError:
        return math.copysign(math.inf, exact)


class MeanOf(Measure):
    """A base of metrics that are a mean over all elements."""

    higher_is_better: ClassVar[bool] = False

    def start(self) -> Accumulator:
        """See `Measure`."""
        return MeanAccumulator(self)

    @abstractmethod
    def terms(self, outputs: NDArray[Any], targets: NDArray[Any]) -> Reals:
        """Return what the mean is taken of."""

    def of_mean(self, mean: float) -> float:
        """Return the value."""
        return mean


@dataclass(frozen=True)
class MeanSquaredError(MeanOf):
    """Mean of squared differences."""

    name: ClassVar[str] = "mean squared error"

    def terms(self, outputs: NDArray[Any], targets: NDArray[Any]) -> Reals:
        """See `MeanOf`."""
        return np.square(differences(self.name, outputs, targets)[0])


@dataclass(frozen=True)
class MeanAbsoluteError(MeanOf):
    """Mean of absolute differences."""

    name: ClassVar[str] = "mean absolute error"

    def terms(self, outputs: NDArray[Any], targets: NDArray[Any]) -> Reals:
        """See `MeanOf`."""
        return np.abs(differences(self.name, outputs, targets)[0])


@dataclass(frozen=True)
class Perplexity(MeanOf):
    """exp of the mean cross-entropy; outputs [n, classes, ...] with class indices [n, ...].

    Attributes:
        ignore_index: A target that is not measured; None for none.
    """

    ignore_index: int | None = None

    name: ClassVar[str] = "perplexity"

    def terms(self, outputs: NDArray[Any], targets: NDArray[Any]) -> Reals:
        """See `MeanOf`."""
        check_places(self.name, outputs, targets)
        rows = np.moveaxis(outputs, 1, -1).reshape(-1, outputs.shape[1]).astype(np.float64)
        index = targets.reshape(-1)
        if self.ignore_index is not None:
            rows, index = rows[index != self.ignore_index], index[index != self.ignore_index]
        check_indices(self.name, index, outputs.shape[1])
        below = rows - rows.max(axis=1, keepdims=True, initial=-np.inf)
        return np.asarray(log(exp(below).sum(axis=1)) - below[np.arange(len(index)), index])

    def of_mean(self, mean: float) -> float:
        """See `MeanOf`."""
        return float(exp(np.array([mean]))[0])


@dataclass(frozen=True)
class R2(Measure):
    """Coefficient of determination, the mean over all outputs of an example.

    As in scikit-learn, an output whose targets are all equal counts 1 if it is exactly right, else
    0.
    """

    name: ClassVar[str] = "r2"

    def start(self) -> Accumulator:
        """See `Measure`."""
        return _R2()


class _R2(Accumulator):
    _targets: ExactSum
    _squares: ExactSum
    _errors: ExactSum

    def __init__(self) -> None:
        self._count, self._columns = 0, -1

    def add(self, outputs: NDArray[Any], targets: NDArray[Any]) -> None:
        error, wanted = (
            each.reshape(len(each), math.prod(each.shape[1:]))
            for each in differences(R2.name, np.asarray(outputs), np.asarray(targets))
        )
        if self._columns < 0:
            self._columns = error.shape[1]
            self._targets, self._squares, self._errors = (ExactSum(self._columns) for _ in range(3))
        if error.shape[1] != self._columns:
            raise TaskError(
                f"r2 had {self._columns} outputs of an example, and now {error.shape[1]}"
            )
        self._count += len(error)
        self._targets.add(wanted)
        for part in squares(wanted):
            self._squares.add(part)
        with np.errstate(over="ignore"):
            self._errors.add(np.square(error))

    def value(self) -> float:
        if self._columns < 1 or self._count < 2:
            raise TaskError(f"r2 of {self._count} example(s) has no value; it needs at least 2")
        if odd := self._errors.odd or self._squares.odd or self._targets.odd:
            return -odd
        each = [
            _r2(error, square - total * total / self._count)
            for error, square, total in zip(
                self._errors.sums, self._squares.sums, self._targets.sums, strict=True
            )
        ]
        return rounded(sum(each, Fraction(0)) / len(each))


def _r2(error: Fraction, spread: Fraction) -> Fraction:
    if spread == 0:
        return Fraction(error == 0)
    return 1 - error / spread
