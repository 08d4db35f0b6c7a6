"""Every loss in every engine: one step is torch's, and integers are equal on every backend."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from fedkit.core.errors import EngineError
from fedkit.engine.base import LocalTraining
from fedkit.engine.integer.constants import WIDE
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.integer.loss import loss_gradient
from fedkit.engine.kernels import native
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.nn.zoo import seeded
from fedkit.shiftquant import convert
from fedkit.sparse.state import ModelState
from fedkit.tasks import losses
from fedkit.tasks.losses import Loss
from fedkit.tasks.task import Examples
from tests.engine.sparse.cases import pruned

COUNT = 21  # no multiple of any number of lanes
HOW = LocalTraining(epochs=1, batch_size=COUNT, lr=0.1, momentum=0.9, weight_decay=0.0)

Shape = tuple[int, ...]

MODELS: dict[str, tuple[Callable[[], nn.Module], Shape, Shape]] = {
    "features": (
        lambda: nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4)),
        (6,),
        (4,),
    ),
    "one feature, through a relu": (
        lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 1), nn.ReLU()),
        (6,),
        (1,),
    ),
    "series": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 1)),
        (3, 7),
        (4, 5),
    ),
    "maps behind a norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)),
        (2, 5, 3),
        (4, 5, 3),
    ),
    "maps of one pixel": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, (5, 3)), nn.ReLU6()),
        (2, 5, 3),
        (4, 1, 1),
    ),
}

LOSSES: dict[str, Loss] = {
    "cross entropy": losses.CrossEntropy(),
    "cross entropy with everything": losses.CrossEntropy((1.0, 0.0, 2.0, 0.5), -100, 0.2),
    "mse": losses.MSE(),
    "l1": losses.L1(),
    "huber": losses.Huber(0.5),
    "smooth l1": losses.SmoothL1(0.5),
    "bce": losses.BCEWithLogits((0.5, 1.0, 2.0, 3.0)),
    "triplets": losses.TripletMargin(0.5),
    "info nce": losses.InfoNCE(0.5),
}

FITTING = [
    (model, loss)
    for model, loss in itertools.product(MODELS, LOSSES)
    if not LOSSES[loss].outputs_problem(MODELS[model][2])
    and not (LOSSES[loss].classifies and MODELS[model][2] == (1,))
]


def targets_for(loss: Loss, shape: Shape, random: np.random.Generator) -> NDArray[Any]:
    if loss.kind in ("triplet_margin_loss", "info_nce"):
        return random.integers(0, 3, COUNT)
    if isinstance(loss, losses.CrossEntropy):
        found = random.integers(0, shape[0], (COUNT, *shape[1:]))
        if loss.ignore_index is not None:
            found[random.random(found.shape) < 0.3] = loss.ignore_index
        return found
    return random.random((COUNT, *shape)).astype(np.float32)


@functools.cache
def plan_of(model: str) -> Plan:
    build, given, _ = MODELS[model]
    return capture(seeded(build, 1), given)


def case(model: str, name: str) -> tuple[TorchEngine, ModelState, Any, Examples]:
    """Return a model on torch, pruned weights, its plan, and examples; one lies at its target."""
    build, given, shape = MODELS[model]
    loss, random = LOSSES[name], np.random.default_rng(3)
    reference = TorchEngine(seeded(build, 1), loss)
    state = reference.initial_state()
    plan = replace(plan_of(model), loss=loss)
    inputs = random.standard_normal((COUNT, *given)).astype(np.float32)
    return reference, pruned(state, 0.7), plan, Examples(inputs, targets_for(loss, shape, random))


def close(found: ModelState, wanted: ModelState) -> None:
    for name, weight in wanted.weights.items():
        np.testing.assert_allclose(found.weights[name], weight, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("model", "loss"), FITTING)
def test_the_sparse_engine_takes_torchs_step(model: str, loss: str) -> None:
    reference, state, plan, data = case(model, loss)
    engine = SparseEngine(plan, threads=2)
    wanted, expected = reference.train(state, data, HOW, 1)
    found, value = engine.train(state, data, HOW, 1)
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)
    close(found, wanted)
    slopes, full = engine.gradients(state, data), reference.gradients(state, data)
    for name, slope in full.items():
        np.testing.assert_allclose(slopes[name], slope, rtol=1e-5, atol=1e-5, err_msg=name)
    assert engine.loss(state, data) == pytest.approx(reference.loss(state, data), rel=1e-5)
    outputs = engine.outputs(state, data.inputs)
    np.testing.assert_allclose(outputs, reference.outputs(state, data.inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model", "loss"), FITTING)
def test_integers_are_equal_on_every_backend_and_near_torchs(model: str, loss: str) -> None:
    reference, state, plan, data = case(model, loss)
    engines = [IntegerEngine(plan, backend="numpy")]
    engines += [IntegerEngine(plan, backend="native", simd=simd) for simd in native.available()]
    trained = [engine.train(state, data, HOW, 1) for engine in engines]
    for found, value in trained[1:]:
        assert value == trained[0][1]
        for name, weight in trained[0][0].weights.items():
            np.testing.assert_array_equal(found.weights[name], weight, err_msg=name)
    _, expected = reference.train(state, data, HOW, 1)
    assert trained[0][1] == pytest.approx(expected, rel=0.1, abs=0.05)
    near = engines[0].gradients(state, data)
    for name, slope in reference.gradients(state, data).items():
        off = np.linalg.norm(near[name] - slope)
        assert off <= 0.45 * np.linalg.norm(slope) + 1e-6, name


def test_a_loop_of_ones_own_takes_a_loss() -> None:
    build, given, shape = MODELS["series"]
    converted = convert(seeded(build, 0), given, loss=losses.MSE())
    random = np.random.default_rng(0)
    inputs = random.standard_normal((32, *given)).astype(np.float32)
    targets = inputs[:, :1, 1:-1].repeat(shape[0], axis=1)
    found = [converted.train_step(inputs, targets, lr=0.1) for _ in range(30)]
    assert found[-1] < found[0] / 4
    with pytest.raises(EngineError, match=r"must be \[n, 4, 5\], as the outputs"):
        converted.train_step(inputs, targets[:, 0], lr=0.1)


@pytest.mark.parametrize("loss", ["mse", "bce", "cross entropy with everything"])
def test_slopes_of_a_batch_are_whole_multiples_of_a_unit(loss: str) -> None:
    random, shape = np.random.default_rng(0), (COUNT, 4, 3, 2)
    targets = targets_for(LOSSES[loss], shape[1:], random)
    for size in (0.0, 1e-30, 1.0, 1e30):
        outputs = size * random.standard_normal(shape)
        value, whole, unit = loss_gradient(LOSSES[loss], outputs, targets)
        exact, slopes = LOSSES[loss].gradient(outputs, targets)
        assert (value, whole.shape, str(whole.dtype)) == (exact, shape, "int16")
        assert np.abs(whole * unit - slopes).max() <= 0.5000001 * unit
        assert np.abs(whole).max() == WIDE
    # Where nothing counts, nothing moves.
    _, whole, unit = loss_gradient(losses.L1(), outputs, outputs)
    assert not whole.any() and unit > 0


def test_a_batch_of_ignored_targets_moves_nothing() -> None:
    for engine_of in (SparseEngine, IntegerEngine, None):
        loss = losses.CrossEntropy(ignore_index=7)
        reference = TorchEngine(seeded(MODELS["features"][0], 1), loss)
        state = reference.initial_state()
        engine: Any = reference
        if engine_of is not None:
            engine = engine_of(replace(plan_of("features"), loss=loss))
        inputs = np.random.default_rng(0).standard_normal((COUNT, 6)).astype(np.float32)
        data = Examples(inputs, np.full(COUNT, 7))
        assert engine.loss(state, data) == 0.0
        assert all(not slope.any() for slope in engine.gradients(state, data).values())
        _, value = engine.train(state, data, HOW, 1)
        assert value == 0.0


@pytest.mark.parametrize("kind", ["torch", "sparse", "numpy", "native"])
@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (losses.MSE(), np.zeros(COUNT, np.float32), "must be .n, 4., as the outputs"),
        (losses.MSE(), np.zeros((COUNT, 3), np.float32), "must be .n, 4."),
        (losses.BCEWithLogits(), np.full((COUNT, 4), 2), "0 for no .. 1 for yes"),
        (losses.CrossEntropy(ignore_index=9), np.full(COUNT, 8), "has 4 classes"),
        (losses.TripletMargin(), np.zeros((COUNT, 4), np.float32), "a class each"),
    ],
)
def test_targets_that_do_not_fit_are_refused_by_every_engine(
    kind: str, loss: Loss, targets: NDArray[Any], message: str
) -> None:
    reference = TorchEngine(seeded(MODELS["features"][0], 1), loss)
    plan, state = replace(plan_of("features"), loss=loss), reference.initial_state()
    engine: Any = reference
    if kind == "sparse":
        engine = SparseEngine(plan)
    elif kind != "torch":
        engine = IntegerEngine(plan, backend=kind)
    data = Examples(np.zeros((COUNT, 6), np.float32), targets)
    for call in (engine.loss, engine.gradients, lambda s, d: engine.train(s, d, HOW, 1)):
        with pytest.raises(EngineError, match=message):
            call(state, data)


def test_the_loss_of_many_examples_counts_each_target_once() -> None:
    """Batches of 64 and 256 have other sums of weights; every engine says the same mean."""
    loss = losses.CrossEntropy((1.0, 0.0, 5.0, 0.5), ignore_index=-100)
    reference = TorchEngine(seeded(MODELS["features"][0], 1), loss)
    state, random = reference.initial_state(), np.random.default_rng(0)
    data = Examples(
        random.standard_normal((700, 6)).astype(np.float32),
        np.where(random.random(700) < 0.4, -100, np.arange(700) // 175),
    )
    whole, _ = loss.gradient(reference.outputs(state, data.inputs).astype(np.float64), data.targets)
    assert reference.loss(state, data) == pytest.approx(whole, rel=1e-5)
    engine = SparseEngine(replace(plan_of("features"), loss=loss))
    assert engine.loss(state, data) == pytest.approx(whole, rel=1e-5)
