"""Anomalies by an autoencoder: scores, the threshold of a fleet, and the damaged digits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedkit.core.errors import TaskError
from fedkit.tasks import anomaly, damaged_digits, digits

RANDOM = np.random.default_rng(0)


def test_scores_are_mean_squared_errors() -> None:
    inputs = RANDOM.standard_normal((5, 3, 4)).astype(np.float32)
    outputs = np.zeros_like(inputs)
    outputs[2] = inputs[2]
    expected = [np.mean([float(x) ** 2 for x in each.ravel()]) for each in inputs - outputs]
    np.testing.assert_allclose(anomaly.scores(outputs, inputs), expected, rtol=1e-12)
    assert anomaly.scores(outputs, inputs)[2] == 0


@pytest.mark.parametrize(("outputs", "inputs"), [((3, 4), (3, 5)), ((0, 4), (0, 4)), ((3,), (2,))])
def test_scores_of_other_shapes_and_of_nothing_are_refused(
    outputs: tuple[int, ...], inputs: tuple[int, ...]
) -> None:
    with pytest.raises(TaskError, match="autoencoder gives as many"):
        anomaly.scores(np.zeros(outputs), np.zeros(inputs))


@pytest.mark.parametrize("cuts", [[], [1], [3, 3, 50], range(1, 90)])
def test_a_fleets_threshold_is_that_of_pooled_scores(cuts: list[int]) -> None:
    scores = np.exp(RANDOM.standard_normal(90) * 0.7 - 3)
    parts = [part for part in np.split(scores, list(cuts)) if len(part)]
    found = anomaly.threshold([anomaly.spread(part) for part in parts], deviations=1.5)
    logs = np.log(scores)
    assert found == pytest.approx(np.exp(logs.mean() + 1.5 * logs.std()), rel=1e-12)


def test_a_threshold_needs_scores_and_takes_a_perfect_model() -> None:
    with pytest.raises(TaskError, match="no device told"):
        anomaly.threshold([])
    assert 0 < anomaly.threshold([anomaly.spread(np.zeros(4))]) < 1e-11


def test_judging_is_scikit_learns_and_counts_above_the_threshold() -> None:
    normal, anomalous = RANDOM.random(40).round(1), (RANDOM.random(30) + 0.3).round(1)
    told = anomaly.judge(normal, anomalous, 0.5)
    truth = np.repeat([0, 1], [40, 30])
    assert told.roc_auc == pytest.approx(roc_auc_score(truth, [*normal, *anomalous]), abs=1e-12)
    assert told.false_alarms == sum(each > 0.5 for each in normal) / 40
    assert told.found == sum(each > 0.5 for each in anomalous) / 30
    with pytest.raises(TaskError):
        anomaly.judge(normal, anomalous[:0], 0.5)


def test_each_type_is_judged_by_itself() -> None:
    normal, anomalous = np.array([0.0, 5.0, 1.0]), np.array([1.0, 4.0, 3.0])
    kinds = np.array([1, 2, 1])
    found = anomaly.judge_by_type(normal, anomalous, (kinds, kinds), 2.0)
    assert found == {"1": anomaly.Detection(0.875, 0.0, 0.5), "2": anomaly.Detection(0.0, 1.0, 1.0)}


def test_damage_mixes_the_pixels_of_one_square_of_every_image() -> None:
    normal = damaged_digits.test_data()
    damaged = damaged_digits.damaged(normal)
    np.testing.assert_array_equal(np.sort(damaged.inputs), np.sort(normal.inputs))
    for before, after in zip(normal.inputs, damaged.inputs, strict=True):
        rows, columns = np.nonzero((before != after).reshape(8, 8))
        assert len(rows) and np.ptp(rows) < 4 and np.ptp(columns) < 4
    again = damaged_digits.damaged(normal)
    np.testing.assert_array_equal(again.inputs, damaged.inputs)
    assert damaged.columns["type"] is not None


def test_sites_hold_machines_of_four_types() -> None:
    train = damaged_digits.train_data()
    types = train.columns["type"]
    np.testing.assert_array_equal(types, digits.train_data().targets)
    for site in range(10):
        held = set(types[np.asarray(train.owners) == site])
        assert held == {(site + step) % 10 for step in range(4)}
