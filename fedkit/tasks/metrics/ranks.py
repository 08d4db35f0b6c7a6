"""Metrics of ranks, which need the scores of all examples."""

from __future__ import annotations

import math
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


@dataclass(frozen=True)
class RocAuc(Measure):
    """Area under the ROC curve, exact: how often what is of a class scores above what is not.

    Of outputs [n, classes, ...] with targets [n, ...] a class's score is its log-odds by softmax,
    each class against the rest; of outputs [n, labels, ...] with targets of that shape, 0 or 1, it
    is the output. The value is the mean over the classes or labels that have both, as
    scikit-learn's `roc_auc_score` with multi_class="ovr".

    The scores of all examples are kept, 8 bytes each.

    Attributes:
        ignore_index: A target that is not measured; None for none.
    """

    ignore_index: int | None = None

    name: ClassVar[str] = "roc auc"

    def start(self) -> Accumulator:
        """See `Measure`."""
        return _Scores(self)


class _Scores(Accumulator):
    def __init__(self, measure: RocAuc) -> None:
        self._ignored = measure.ignore_index
        self._scores: list[Reals] = []
        self._wanted: list[NDArray[np.bool_]] = []
        self._counted: list[NDArray[np.bool_]] = []

    def add(self, outputs: NDArray[Any], targets: NDArray[Any]) -> None:
        outputs, targets = np.asarray(outputs), np.asarray(targets)
        of_labels = outputs.ndim >= 2 and outputs.shape == targets.shape
        rows = _rows(outputs) if outputs.ndim >= 2 else outputs
        if of_labels:
            given = _rows(targets)
            if not np.isin(given, (0, 1, *_some(self._ignored))).all():
                raise TaskError(f"{RocAuc.name} of labels takes targets 0 or 1")
            scores, wanted = rows.astype(np.float64), given == 1
        else:
            check_places(RocAuc.name, outputs, targets)
            given = targets.reshape(-1, 1)
            scores, wanted = _log_odds(rows), given == np.arange(outputs.shape[1])
            check_indices(RocAuc.name, targets[self._counts(targets)], outputs.shape[1])
        self._scores.append(scores)
        self._wanted.append(wanted)
        self._counted.append(np.broadcast_to(self._counts(given), wanted.shape))

    def _counts(self, targets: NDArray[Any]) -> NDArray[np.bool_]:
        if self._ignored is None:
            return np.ones(targets.shape, np.bool_)
        return np.asarray(targets != self._ignored)

    def value(self) -> float:
        if not sum(map(np.count_nonzero, self._counted)):
            raise nothing_to_measure(RocAuc.name)
        parts = (self._scores, self._wanted, self._counted)
        scores, wanted, counted = (np.concatenate(part) for part in parts)
        if np.isnan(scores[counted]).any():
            return math.nan
        areas = [
            area
            for score, yes, there in zip(scores.T, wanted.T, counted.T, strict=True)
            if (area := _area(score[there], yes[there])) is not None
        ]
        if not areas:
            raise TaskError(
                f"{RocAuc.name} of targets that all are alike has no value; measure on examples "
                "with a class and without it"
            )
        return float(sum(areas, Fraction(0)) / len(areas))


def _some(value: int | None) -> tuple[int, ...]:
    return () if value is None else (value,)


def _rows(array: NDArray[Any]) -> NDArray[Any]:
    """Return [n, channels, ...] as [places, channels]."""
    return np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])


def _log_odds(logits: NDArray[Any]) -> Reals:
    """Return log(p / (1 - p)) of each class by softmax, [places, classes].

    They rank as probabilities do, of which those near 1 are all 1. The same logits in another order
    give the same values, so that equal odds stay equal.
    """
    if logits.shape[1] < 2:
        raise TaskError(
            f"{RocAuc.name} of one class has no value; of a yes or no bring targets [n, 1], of the "
            "outputs' shape"
        )
    rows = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        falling = -np.sort(-rows, axis=1)
        top = falling[:, :1]
        rest = exp(falling[:, 1:] - top).sum(axis=1, keepdims=True)
        below = rows - top
        others = np.where(below == 0, rest, 1.0 + rest - exp(below))
    return np.asarray(below - log(np.maximum(others, np.finfo(np.float64).tiny)))


def _area(scores: Reals, wanted: NDArray[np.bool_]) -> Fraction | None:
    """Return the share of pairs, of which equal scores count half; None if there are no pairs."""
    yes, no = int(np.count_nonzero(wanted)), int(np.count_nonzero(~wanted))
    if not yes or not no:
        return None
    values, place = np.unique(scores, return_inverse=True)
    ups = np.bincount(place[wanted], minlength=len(values))
    downs = np.bincount(place[~wanted], minlength=len(values))
    below = np.cumsum(downs) - downs
    return Fraction(int((ups * (2 * below + downs)).sum()), 2 * yes * no)
