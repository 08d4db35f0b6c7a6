"""Metrics that are added up batch by batch, by scikit-learn's names.

>>> from fedkit.tasks import metrics
>>> metrics.F1(average="micro")
F1(ignore_index=None, average='micro')

Each is a frozen dataclass that is called like a function of (outputs, targets), and whose `start`
gives an accumulator: `add` takes a batch, `value` says what all of them are worth. Batches of any
size give the same value, to the last bit. A new one is a class and its place in `METRICS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedkit.tasks.metrics.class_counts import F1, Accuracy, BalancedAccuracy, Jaccard
from fedkit.tasks.metrics.measure import Accumulator, Measure, nothing_to_measure
from fedkit.tasks.metrics.numbers import R2, MeanAbsoluteError, MeanSquaredError, Perplexity
from fedkit.tasks.metrics.ranks import RocAuc

METRICS: Mapping[str, type[Measure]] = {
    row.name: row
    for row in (
        *(Accuracy, BalancedAccuracy, F1, Jaccard, RocAuc),
        *(MeanSquaredError, MeanAbsoluteError, R2, Perplexity),
    )
}
"""Name -> metric."""

__all__ = [
    "F1",
    "METRICS",
    "R2",
    "Accumulator",
    "Accuracy",
    "BalancedAccuracy",
    "Jaccard",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Measure",
    "Perplexity",
    "RocAuc",
    "nothing_to_measure",
]
