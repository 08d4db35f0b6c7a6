"""Metrics of counts: how often which class is told, or each of several labels.

Of outputs [n, classes, ...] with targets [n, ...] the class with the largest output is told. Of
outputs [n, labels, ...] with targets of the same shape, 0 or 1, a label is told where its output, a
logit, is above 0.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import TaskError
from fedkit.tasks.metrics.measure import (
    Accumulator,
    Ints,
    Measure,
    check_indices,
    check_places,
    nothing_to_measure,
)


@dataclass(frozen=True)
class Accuracy(Measure):
    """Share of targets whose class has the largest output.

    Attributes:
        ignore_index: A target that is not measured; None for none.
    """

    ignore_index: int | None = None

    name: ClassVar[str] = "accuracy"
    form: ClassVar[str] = ".2%"

    def start(self) -> Accumulator:
        """See `Measure`."""
        return _Right(self.ignore_index)


class _Right(Accumulator):
    def __init__(self, ignored: int | None) -> None:
        self._ignored, self._right, self._all = ignored, 0, 0

    def add(self, outputs: NDArray[Any], targets: NDArray[Any]) -> None:
        outputs, targets = np.asarray(outputs), np.asarray(targets)
        check_places("accuracy", outputs, targets)
        counted = (
            np.ones(targets.shape, np.bool_)
            if self._ignored is None
            else (targets != self._ignored)
        )
        self._right += int(np.count_nonzero((outputs.argmax(axis=1) == targets) & counted))
        self._all += int(np.count_nonzero(counted))

    def value(self) -> float:
        if self._all == 0:
            raise nothing_to_measure("accuracy")
        return self._right / self._all


@dataclass(frozen=True)
class ClassCounts:
    """Per class or label: how often it was told rightly, told, and wanted; int64 [classes].

    Attributes:
        places: How many targets were counted.
        labels: Whether these are labels, of which each counts though it is never told nor wanted.
    """

    right: Ints
    told: Ints
    wanted: Ints
    places: int
    labels: bool

    def __add__(self, other: ClassCounts) -> ClassCounts:
        return ClassCounts(
            self.right + other.right,
            self.told + other.told,
            self.wanted + other.wanted,
            self.places + other.places,
            self.labels,
        )

    @classmethod
    def of(
        cls, name: str, outputs: NDArray[Any], targets: NDArray[Any], ignored: int | None
    ) -> ClassCounts:
        """Count a batch; see the module.

        Raises:
            TaskError: Outputs and targets do not fit each other.
        """
        if outputs.ndim >= 2 and outputs.shape == targets.shape:
            return cls._of_labels(name, outputs, targets, ignored)
        check_places(name, outputs, targets)
        classes, found = outputs.shape[1], outputs.argmax(axis=1)
        if ignored is not None:
            found, targets = found[targets != ignored], targets[targets != ignored]
        check_indices(name, targets, classes)
        right, told, wanted = (
            np.bincount(each.ravel(), minlength=classes)
            for each in (targets[found == targets], found, targets)
        )
        return cls(right, told, wanted, targets.size, labels=False)

    @classmethod
    def _of_labels(
        cls, name: str, outputs: NDArray[Any], targets: NDArray[Any], ignored: int | None
    ) -> ClassCounts:
        counted = np.ones(targets.shape, np.bool_) if ignored is None else targets != ignored
        if not np.isin(targets[counted], (0, 1)).all():
            raise TaskError(
                f"{name} of labels takes targets 0 or 1, and these are from {targets.min()} to "
                f"{targets.max()}"
            )
        told, wanted = (outputs > 0) & counted, (targets == 1) & counted
        others = (0, *range(2, targets.ndim))
        right, told, wanted = (
            np.asarray(np.count_nonzero(each, axis=others))
            for each in (told & wanted, told, wanted)
        )
        return cls(right, told, wanted, int(np.count_nonzero(counted)), labels=True)


@dataclass(frozen=True)
class OfCounts(Measure):
    """A base of metrics of `ClassCounts`.

    Attributes:
        ignore_index: A target that is not measured; None for none.
    """

    ignore_index: int | None = None

    def start(self) -> Accumulator:
        """See `Measure`."""
        return _Counting(self)

    @abstractmethod
    def of(self, counts: ClassCounts) -> float:
        """Return the value of counts that are not all 0."""


class _Counting(Accumulator):
    def __init__(self, measure: OfCounts) -> None:
        self._measure, self._counts = measure, None

    _counts: ClassCounts | None

    def add(self, outputs: NDArray[Any], targets: NDArray[Any]) -> None:
        name, ignored = self._measure.name, self._measure.ignore_index
        found = ClassCounts.of(name, np.asarray(outputs), np.asarray(targets), ignored)
        self._counts = found if self._counts is None else self._counts + found

    def value(self) -> float:
        counts = self._counts
        if counts is None or counts.places == 0:
            raise nothing_to_measure(self._measure.name)
        return self._measure.of(counts)


@dataclass(frozen=True)
class BalancedAccuracy(OfCounts):
    """Mean over the classes that are wanted of the share of each that is told rightly."""

    name: ClassVar[str] = "balanced accuracy"
    form: ClassVar[str] = ".2%"

    def of(self, counts: ClassCounts) -> float:
        """See `OfCounts`."""
        if counts.labels:
            raise TaskError(
                "balanced accuracy compares outputs [n, classes, ...] with targets [n, ...]; of "
                "labels take metrics.F1 or metrics.RocAuc"
            )
        there = counts.wanted > 0
        return float(np.mean(counts.right[there] / counts.wanted[there]))


@dataclass(frozen=True)
class _Averaged(OfCounts):
    """A base of ratios of counts, per class or of all classes together.

    Attributes:
        average: "macro" is the mean over the classes that are told or wanted, or over all labels;
            "micro" that of all counts added up.
    """

    average: Literal["macro", "micro"] = "macro"

    def __post_init__(self) -> None:
        if self.average not in ("macro", "micro"):
            raise TaskError(
                f"average of {self.name} is {self.average!r}; choose 'macro' or 'micro'"
            )

    def of(self, counts: ClassCounts) -> float:
        """See `OfCounts`."""
        right, told, wanted = counts.right, counts.told, counts.wanted
        if self.average == "micro":
            right, told, wanted = (part.sum(keepdims=True) for part in (right, told, wanted))
        elif not counts.labels:
            there = told + wanted > 0
            right, told, wanted = right[there], told[there], wanted[there]
        above, below = self.ratio(right, told, wanted)
        return float(np.mean(above / np.maximum(below, 1)))  # 0 of none is 0, as in scikit-learn

    @abstractmethod
    def ratio(self, right: Ints, told: Ints, wanted: Ints) -> tuple[Ints, Ints]:
        """Return numerators and denominators."""


@dataclass(frozen=True)
class F1(_Averaged):
    """Harmonic mean of precision and recall, scikit-learn's `f1_score`."""

    name: ClassVar[str] = "f1"

    def ratio(self, right: Ints, told: Ints, wanted: Ints) -> tuple[Ints, Ints]:
        """See `_Averaged`."""
        return 2 * right, told + wanted


@dataclass(frozen=True)
class Jaccard(_Averaged):
    """Intersection over union, scikit-learn's `jaccard_score`; of maps the mean IoU."""

    name: ClassVar[str] = "jaccard"

    def ratio(self, right: Ints, told: Ints, wanted: Ints) -> tuple[Ints, Ints]:
        """See `_Averaged`."""
        return right, told + wanted - right
