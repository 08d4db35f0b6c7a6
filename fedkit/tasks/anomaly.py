"""Anomalies told by an autoencoder: what it cannot tell again is none of what it was trained on.

An example's score is the mean squared error of what comes out. Above which score an example is an
anomaly, devices say together: each runs the model on normal data of its own and tells three
numbers, the moments of the logarithms of its scores. They merge into those of all data, so the
threshold is the one that pooled scores would give, and no score leaves its device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import TaskError
from fedkit.stats.moments import Moments, merge
from fedkit.tasks.metrics import RocAuc

Scores = NDArray[np.float64]

_LEAST = 1e-12  # a score of 0 has no logarithm


def scores(outputs: NDArray[Any], inputs: NDArray[Any]) -> Scores:
    """Return the score of each example, float64 [n], of outputs and inputs [n, ...].

    Raises:
        TaskError: They differ in shape, or are empty.
    """
    outputs, inputs = np.asarray(outputs), np.asarray(inputs)
    if outputs.shape != inputs.shape or not inputs.size:
        raise TaskError(
            f"outputs are {outputs.shape} and inputs {inputs.shape}; an autoencoder gives as many "
            "numbers as it is given, of at least one example"
        )
    errors = outputs.astype(np.float64) - inputs
    return np.asarray(np.square(errors).reshape(len(inputs), -1).mean(axis=1))


def spread(found: Scores) -> Moments:
    """Return what a device tells of its scores [n]: the moments of their logarithms."""
    return Moments.of(np.log(np.maximum(found, _LEAST))[:, None])


def threshold(told: Sequence[Moments], deviations: float = 2.0) -> float:
    """Return the score above which an example is an anomaly.

    Args:
        told: What each device told, see `spread`.
        deviations: How many standard deviations of the logarithm lie below it.

    Raises:
        TaskError: No device told anything.
    """
    if not sum(each.n for each in told):
        raise TaskError("no device told a score; a threshold needs some of normal examples")
    merged = merge(told)
    return math.exp(float(merged.mean[0] + deviations * math.sqrt(merged.variance[0])))


@dataclass(frozen=True)
class Detection:
    """How well anomalies are told.

    Attributes:
        roc_auc: How often an anomaly has a larger score than a normal example.
        false_alarms: Share of the normal examples above the threshold.
        found: Share of the anomalies above it.
    """

    roc_auc: float
    false_alarms: float
    found: float


def judge(normal: Scores, anomalous: Scores, limit: float) -> Detection:
    """Compare the scores of normal and of anomalous examples, [n] and [m].

    Raises:
        TaskError: One of them is empty.
    """
    both = np.concatenate([normal, anomalous])[:, None]
    is_anomaly = np.repeat([0, 1], [len(normal), len(anomalous)])[:, None]
    area = RocAuc()(both, is_anomaly)
    return Detection(area, float((normal > limit).mean()), float((anomalous > limit).mean()))


def judge_by_type(
    normal: Scores, anomalous: Scores, types: tuple[NDArray[Any], NDArray[Any]], limit: float
) -> dict[str, Detection]:
    """Compare scores for each type of machine by itself.

    Args:
        normal: [n].
        anomalous: [m].
        types: Of the normal and of the anomalous examples, [n] and [m].
        limit: The threshold.
    """
    own, others = types
    return {
        str(each): judge(normal[own == each], anomalous[others == each], limit)
        for each in np.unique(own)
    }
