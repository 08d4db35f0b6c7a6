"""Metrics batch by batch: scikit-learn's values, and the same bits for batches of any size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk

from fedkit.core.errors import TaskError
from fedkit.tasks import losses, metrics
from fedkit.tasks.metrics.measure import Measure
from fedkit.tasks.metrics.sums import ExactSum, squares
from fedkit.tasks.task import ACCURACY, Metric, Task, accuracy

Array = NDArray[Any]
Data = tuple[Array, Array]
Random = np.random.Generator

COUNT = 60


def softmax(logits: Array) -> Array:
    """Return probabilities to 12 digits, so that equal ones are equal."""
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.round(powers / powers.sum(1, keepdims=True), 12)


def of_classes(random: Random, kind: str, shape: tuple[int, ...] = (4,)) -> Data:
    outputs = random.standard_normal((COUNT, *shape)).astype(np.float32)
    targets = random.integers(0, shape[0], (COUNT, *shape[1:]))
    if kind == "a class is missing":
        targets[targets == 1] = 2
    if kind == "one score for all":
        outputs[:] = 0.5
    if kind == "few scores":
        outputs = np.round(outputs)
    return outputs, targets


def of_labels(random: Random, kind: str) -> Data:
    outputs, _ = of_classes(random, kind, (3,))
    targets = random.integers(0, 2, outputs.shape)
    if kind == "a class is missing":
        targets[:, 1] = 0
        outputs[:, 2] = -1
    return outputs, targets


def of_numbers(random: Random, kind: str) -> Data:
    outputs, _ = of_classes(random, kind, (3,))
    targets = (outputs * 0.5 + random.standard_normal(outputs.shape)).astype(np.float32)
    if kind == "a class is missing":
        targets[:, 1] = outputs[:, 1] = 0.1
        targets[:, 2] = 0.1
    if kind == "few scores":
        targets = targets + np.float32(1e6)
        outputs = outputs + np.float32(1e6)
    return outputs, targets


def places(data: Data) -> Data:
    """Return maps as a row per place, as scikit-learn takes them."""
    outputs, targets = data
    return np.moveaxis(outputs, 1, -1).reshape(-1, outputs.shape[1]), targets.reshape(-1)


def told(function: Callable[..., float], **how: Any) -> Callable[[Data], float]:
    def value(data: Data) -> float:
        outputs, targets = places(data) if data[0].ndim > data[1].ndim else data
        found = outputs.argmax(1) if targets.ndim == 1 else outputs > 0
        return float(function(targets, found, **how))

    return value


def ranked(data: Data) -> float:
    """Return scikit-learn's area, the mean over the classes that have both."""
    outputs, targets = data
    if targets.ndim == 1:
        outputs, targets = softmax(outputs), np.eye(outputs.shape[1])[targets]
    both = [c for c in range(targets.shape[1]) if 0 < targets[:, c].sum() < len(targets)]
    return float(np.mean([sk.roc_auc_score(targets[:, c], outputs[:, c]) for c in both]))


def surprise(data: Data) -> float:
    outputs, targets = places(data)
    logits = outputs.astype(np.float64)
    logits = logits - logits.max(1, keepdims=True)
    sure = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return math.exp(sk.log_loss(targets, sure, labels=range(outputs.shape[1])))


def numbers(function: Callable[..., float]) -> Callable[[Data], float]:
    return lambda data: float(function(data[1].astype(np.float64), data[0].astype(np.float64)))


Make = Callable[[Random, str], Data]


def maps(random: Random, kind: str) -> Data:
    return of_classes(random, kind, (4, 3, 2))


CASES: dict[str, tuple[Measure, Callable[[Data], float], Make]] = {
    "accuracy": (metrics.Accuracy(), told(sk.accuracy_score), of_classes),
    "accuracy of maps": (metrics.Accuracy(), told(sk.accuracy_score), maps),
    "balanced": (metrics.BalancedAccuracy(), told(sk.balanced_accuracy_score), of_classes),
    "f1": (metrics.F1(), told(sk.f1_score, average="macro"), of_classes),
    "f1 micro": (metrics.F1(average="micro"), told(sk.f1_score, average="micro"), of_classes),
    "f1 of labels": (metrics.F1(), told(sk.f1_score, average="macro", zero_division=0), of_labels),
    "f1 of labels, micro": (
        metrics.F1(average="micro"),
        told(sk.f1_score, average="micro", zero_division=0),
        of_labels,
    ),
    "jaccard": (metrics.Jaccard(), told(sk.jaccard_score, average="macro"), of_classes),
    "jaccard of maps": (metrics.Jaccard(), told(sk.jaccard_score, average="macro"), maps),
    "jaccard of labels": (
        metrics.Jaccard(),
        told(sk.jaccard_score, average="macro", zero_division=0),
        of_labels,
    ),
    "roc auc": (metrics.RocAuc(), ranked, of_classes),
    "roc auc of labels": (metrics.RocAuc(), ranked, of_labels),
    "mse": (metrics.MeanSquaredError(), numbers(sk.mean_squared_error), of_numbers),
    "mae": (metrics.MeanAbsoluteError(), numbers(sk.mean_absolute_error), of_numbers),
    "r2": (metrics.R2(), numbers(sk.r2_score), of_numbers),
    "perplexity": (metrics.Perplexity(), surprise, of_classes),
    "perplexity of maps": (metrics.Perplexity(), surprise, maps),
}
KINDS = ("random", "a class is missing", "one score for all", "few scores")


def in_batches(measure: Measure, data: Data, size: int) -> float:
    seen = measure.start()
    for start in range(0, COUNT, size):
        seen.add(data[0][start : start + size], data[1][start : start + size])
    return seen.value()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_a_metric_is_scikit_learns_for_batches_of_any_size(name: str, kind: str) -> None:
    measure, wanted, make = CASES[name]
    for seed in range(3):
        data = make(np.random.default_rng(seed), kind)
        found = measure(*data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is missing
            # Sums of float64 cancel in scikit-learn's r2 where the targets' mean is large.
            near = 1e-6 if (name, kind) == ("r2", "few scores") else 1e-12
            assert found == pytest.approx(wanted(data), rel=near, abs=1e-12)
        for size in (1, 7, 59):
            assert in_batches(measure, data, size) == found
        order = np.random.default_rng(seed).permutation(COUNT)
        assert measure(data[0][order], data[1][order]) == found


def test_every_metric_is_compared() -> None:
    assert {type(measure) for measure, _, _ in CASES.values()} == {*metrics.METRICS.values()}


@pytest.mark.parametrize("name", CASES)
def test_nothing_has_no_value(name: str) -> None:
    measure, _, make = CASES[name]
    outputs, targets = make(np.random.default_rng(0), "random")
    with pytest.raises(TaskError, match="has no value"):
        measure.start().value()
    with pytest.raises(TaskError, match="has no value"):
        measure(outputs[:0], targets[:0])


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (metrics.Accuracy, of_classes),
        (metrics.BalancedAccuracy, of_classes),
        (metrics.F1, of_classes),
        (metrics.F1, of_labels),
        (metrics.Jaccard, maps),
        (metrics.Jaccard, of_labels),
        (metrics.RocAuc, of_classes),
        (metrics.RocAuc, of_labels),
        (metrics.Perplexity, maps),
    ],
)
def test_ignored_targets_are_left_out(make: Callable[..., Measure], data: Make) -> None:
    outputs, targets = data(np.random.default_rng(0), "random")
    if outputs.ndim == targets.ndim:
        outputs, targets = outputs[:, :1], targets[:, :1]  # of one label, rows can be taken out
        keep = np.arange(COUNT) % 3 > 0
        left = outputs[keep], targets[keep]
        targets[~keep] = 9
    else:
        rows, index = places((outputs, targets))
        keep = np.arange(len(index)) % 3 > 0
        left = rows[keep], index[keep]
        targets = np.where(keep, index, 9).reshape(targets.shape)
    assert make(ignore_index=9)(outputs, targets) == make()(*left)
    with pytest.raises(TaskError, match="has no value"):
        make(ignore_index=9)(outputs, np.full_like(targets, 9))


@pytest.mark.parametrize(
    ("measure", "outputs", "targets", "message"),
    [
        (metrics.F1(), (4, 3), np.array([0, 1, 2, 3]), "targets in 0 .. 2, .* from 0 to 3"),
        (metrics.F1(), (4, 3), np.zeros(4), "takes class indices"),
        (metrics.F1(), (4, 2), np.full((4, 2), 2), "labels takes targets 0 or 1"),
        (metrics.F1(), (4, 3), np.zeros((4, 2), int), r"tell the classes of \(4,\)"),
        (metrics.F1(), (4,), np.zeros(4, int), "compares outputs"),
        (metrics.BalancedAccuracy(), (4, 2), np.zeros((4, 2), int), "of labels take metrics.F1"),
        (metrics.RocAuc(), (4, 1), np.zeros(4, int), r"bring targets \[n, 1\]"),
        (metrics.RocAuc(), (4, 2), np.zeros(4, int), "all are alike"),
        (metrics.RocAuc(), (4, 2), np.full((4, 2), 0.5), "targets 0 or 1"),
        (metrics.RocAuc(), (4, 2), np.array([0, 1, 2, 0]), "targets in 0 .. 1"),
        (metrics.Perplexity(), (4, 2), np.array([0, 1, -1, 0]), "ignore_index"),
        (metrics.MeanSquaredError(), (4, 1), np.zeros(4), "different shapes"),
        (metrics.R2(), (1, 1), np.zeros((1, 1)), "r2 of 1 example"),
    ],
)
def test_what_does_not_fit_is_refused(
    measure: Measure, outputs: tuple[int, ...], targets: Array, message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        measure(np.zeros(outputs, np.float32), targets)


def test_an_average_is_one_of_two() -> None:
    with pytest.raises(TaskError, match="average of f1 is 'weighted'"):
        metrics.F1(average="weighted")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2] is of_numbers])
def test_outputs_that_are_no_numbers_give_none(name: str) -> None:
    measure, _, make = CASES[name]
    outputs, targets = make(np.random.default_rng(0), "random")
    for bad in (np.nan, np.inf):
        outputs[7, 1] = bad
        assert not math.isfinite(measure(outputs, targets))
        assert not math.isfinite(in_batches(measure, (outputs, targets), 4))


def test_r2_is_exact_where_the_mean_is_large() -> None:
    targets = np.array([[1e9 + 1], [1e9 + 2], [1e9 + 4]])
    outputs = targets + np.array([[1.0], [0.0], [-1.0]])
    spread = sum((Fraction(t) - Fraction(7, 3)) ** 2 for t in (1, 2, 4))
    assert metrics.R2()(outputs, targets) == float(1 - 2 / spread)


# Exact sums


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20), st.integers(0, 20))
def test_a_sum_is_exact_however_it_is_cut(values: list[float], cut: int) -> None:
    total = ExactSum()
    for part in (values[:cut], values[cut:]):
        total.add(np.array(part, np.float64).reshape(-1, 1))
    assert total.sums == [sum(map(Fraction, values), Fraction(0))]


@given(st.floats(-1e100, 1e100).filter(lambda x: x == 0 or abs(x) > 1e-100))
def test_a_square_in_two_parts_is_exact(value: float) -> None:
    high, low = squares(np.array([value]))
    assert Fraction(high[0]) + Fraction(low[0]) == Fraction(value) ** 2


# In a task


def task(**own: Any) -> Task:
    return Task("own", "resnet8", lambda: None, lambda: None, **own)  # type: ignore[arg-type, return-value]


def test_a_task_shows_a_metric_as_it_says() -> None:
    found = task(metric=metrics.MeanSquaredError()).measure
    assert (found.name, found.higher_is_better, found.form) == ("mean squared error", False, ".4g")
    assert found.key == "mean_squared_error"
    assert Metric.of(found.about).text(0.5) == "0.5"
    assert task().measure is ACCURACY is task(metric=metrics.Accuracy()).measure


def test_accuracy_leaves_out_what_the_loss_ignores() -> None:
    ignoring = task(loss=losses.CrossEntropy(ignore_index=-100))
    outputs, targets = np.eye(3), np.array([0, -100, 1])
    assert ignoring.measure(outputs, targets) == 0.5 == ignoring.measure(outputs[::2], targets[::2])
    assert ignoring.measure.name == "accuracy" and ignoring.measure.form == ".2%"
    assert task(loss=ignoring.loss, metric=metrics.Accuracy(7)).measure(outputs, targets) == 1 / 3


def test_a_plain_function_is_given_all_at_once() -> None:
    sizes = []

    def median(outputs: Array, targets: Array) -> float:
        sizes.append(len(outputs))
        return float(np.median(outputs))

    seen = task(metric=median).measure.start()
    seen.add(np.array([1.0, 9.0]), np.zeros(2))
    seen.add(np.array([2.0]), np.zeros(1))
    assert (seen.value(), sizes) == (2.0, [3])
    with pytest.raises(TaskError, match="median of no targets"):
        task(metric=median).measure.start().value()


def test_accuracy_is_what_it_was() -> None:
    random = np.random.default_rng(0)
    outputs, targets = random.standard_normal((997, 10)), random.integers(0, 10, 997)
    assert accuracy(outputs, targets) == float(np.mean(outputs.argmax(axis=1) == targets))
