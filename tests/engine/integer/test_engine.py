"""The integer engine as algorithms see it: it learns, keeps masks, depends on its inputs alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedkit.engine.base import GradientSums, LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.kernels import native
from fedkit.engine.plan.structure import Plan
from fedkit.nn.norm import L1LayerNorm
from fedkit.sparse.state import ModelState
from fedkit.sparse.topk import largest
from fedkit.tasks import digits
from tests.engine.same_bits import same_bits
from tests.engine.sparse.cases import engines, examples, l1, layered, pruned, zoo
from tests.sets import slow

HOW = LocalTraining(epochs=2, batch_size=8, lr=0.05, momentum=0.9, weight_decay=1e-3)
SHAPE = (1, 8, 8)
RESNET = zoo("resnet8", SHAPE, 10)
MODELS = {"batch": RESNET, "l1": l1(RESNET), "layer": layered(L1LayerNorm, SHAPE, 10)}
SETS = ("numpy", *native.available())

Arrays = dict[str, NDArray[Any]]


def engine(plan: Plan, chosen: str, bits: int = 4, rule: str = "shiftquant") -> IntegerEngine:
    if chosen == "numpy":
        return IntegerEngine(plan, bits=bits, gradient=rule, backend="numpy")
    return IntegerEngine(plan, bits=bits, gradient=rule, backend="native", simd=chosen)


def model(name: str, density: float) -> tuple[Plan, ModelState]:
    reference, sparse = engines(MODELS[name], SHAPE)
    return sparse.plan, pruned(reference.initial_state(), density)


# Learning


@pytest.mark.parametrize(("name", "density"), [slow(("batch", 1.0)), ("l1", 0.3)])
def test_digits_are_learnt_with_4_bits(name: str, density: float) -> None:
    plan, state = model(name, density)
    how = LocalTraining(epochs=1, batch_size=32, lr=0.1, momentum=0.9, weight_decay=1e-4)
    made, test = IntegerEngine(plan, bits=4), digits.test_data()
    before = made.loss(state, test)
    trained, loss = made.train(state, digits.train_data(), how, seed=0)
    share = (made.outputs(trained, test.inputs).argmax(1) == test.targets).mean()
    assert share > 0.9
    assert loss < 0.9 and made.loss(trained, test) < 0.4 < before


def test_a_pruned_weight_stays_exactly_zero_and_masks_stay() -> None:
    for density in (0.1, 0.7):
        plan, state = model("batch", density)
        trained, _ = IntegerEngine(plan, bits=4).train(state, examples(20, SHAPE), HOW, seed=0)
        for name, mask in trained.masks.items():
            assert np.array_equal(mask, state.masks[name])
            assert not trained.weights[name].view(np.uint32)[~mask].any()
            moved = trained.weights[name][mask] != state.weights[name][mask]
            assert moved.mean() > 0.9, name


def test_statistics_are_those_of_the_last_weights() -> None:
    """So that what was trained is evaluated as it was trained."""
    plan, state = model("batch", 0.5)
    made, data = IntegerEngine(plan), digits.train_data().take(np.arange(64))
    how = replace(HOW, batch_size=64)
    trained, _ = made.train(state, data, how, seed=0)
    for name, moments in made.norm_moments(trained, data).items():
        deviation = np.sqrt(moments.variance)
        mean = trained.stats[f"{name}.running_mean"]
        variance = trained.stats[f"{name}.running_var"]
        assert np.abs((mean - moments.mean) / deviation).max() < 1e-4
        share = moments.n / (moments.n - 1)
        np.testing.assert_allclose(variance, moments.variance * share, rtol=1e-4)


# Sameness


def everything(made: IntegerEngine, state: ModelState) -> tuple[ModelState, Arrays]:
    """Return what all methods of the engine find."""
    data, how = examples(21, SHAPE, 10), replace(HOW, epochs=1)
    sums: GradientSums = {}
    trained, loss = made.train(state, data, how, seed=3)
    again, _ = made.train(state, data, how, seed=3, gradient_sums=sums)
    found: Arrays = {f"sum {name}": value for name, value in sums.items()}
    found |= {f"again {name}": value for name, value in again.weights.items()}
    found |= {f"gradient {name}": g for name, g in made.gradients(trained, data).items()}
    for name, moments in made.norm_moments(trained, data).items():
        found[f"mean {name}"], found[f"variance {name}"] = moments.mean, moments.variance
    found["losses"] = np.array([loss, made.loss(trained, data)])
    found["outputs"] = made.outputs(trained, data.inputs)
    for name, top in made.top_gradients(trained, data, dict.fromkeys(state.masks, 9)).items():
        found[f"top {name}"], found[f"top of {name}"] = top.indices, top.values
    return trained, found


@pytest.mark.parametrize(
    ("name", "bits", "rule"),
    [slow(("batch", 3, "per-channel")), ("l1", 6, "shiftquant"), slow(("layer", 5, "shiftquant"))],
)
def test_every_backend_finds_the_same_bits(name: str, bits: int, rule: str) -> None:
    plan, state = model(name, 0.4)
    (trained, found), *others = (everything(engine(plan, s, bits, rule), state) for s in SETS)
    assert len(others) == len(native.available()) > 0
    for other_state, other in others:
        assert same_bits(trained, other_state)
        assert found.keys() == other.keys()
        assert [n for n in found if found[n].tobytes() != other[n].tobytes()] == []


def test_an_engine_forgets_what_it_did_before() -> None:
    plan, first = model("batch", 0.3)
    _, other = model("batch", 0.2)
    made, data = IntegerEngine(plan, bits=4), examples(20, SHAPE, 10)
    trained, _ = made.train(first, data, HOW, seed=1)
    made.norm_moments(other, examples(50, SHAPE, 10, seed=5))
    made.loss(other, data)
    made.top_gradients(other, examples(30, SHAPE, 10), {"0.0.weight": 3})
    assert same_bits(made.train(first, data, HOW, seed=1)[0], trained)
    assert not same_bits(made.train(first, data, HOW, seed=2)[0], trained)
    fresh = IntegerEngine(plan, bits=4)
    assert same_bits(fresh.train(other, data, HOW, 2)[0], made.train(other, data, HOW, 2)[0])


@pytest.mark.parametrize("lr", [1e-4, 1e-2, 1.0, 100.0, 1e6])
def test_a_weight_follows_its_gradient_at_any_rate(lr: float) -> None:
    """The longest move has 22 bits or more, and all others its step."""
    plan, state = model("batch", 1.0)
    made, data = IntegerEngine(plan, bits=4), examples(16, SHAPE, 10)
    how = LocalTraining(epochs=1, batch_size=16, lr=lr, momentum=0.0, weight_decay=0.0)
    sums: GradientSums = {}
    trained, _ = made.train(state, data, how, 0, sums)
    for name, gradient in sums.items():
        weight = state.weights[name]
        expected = lr * gradient.astype(np.float64)
        moved = weight.astype(np.float64) - trained.weights[name]
        step = max(np.abs(expected).max(), np.abs(weight).max()) * 2.0**-21
        np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=max(step, 1e-7), err_msg=name)


# Gradients of pruned weights


@pytest.mark.parametrize("density", [0.0, 0.2, 0.7])
def test_the_top_gradients_are_the_largest_of_pruned_weights(density: float) -> None:
    plan, state = model("batch", density)
    made, data = IntegerEngine(plan), examples(21, SHAPE, 10)
    found = made.top_gradients(state, data, dict.fromkeys(plan.prunable, 40))
    whole = made.gradients(state, data)
    assert list(whole) == list(plan.prunable)
    for name, entries in found.items():
        assert whole[name].dtype == np.float32 and whole[name].shape == plan.weights[name]
        gradient = whole[name].reshape(-1)
        positions = np.flatnonzero(~state.masks[name].reshape(-1))
        chosen = positions[largest(gradient[positions], 40)]
        assert np.array_equal(entries.indices, chosen)
        assert np.array_equal(entries.values, gradient[chosen])


def test_gradients_of_all_weights_are_those_that_training_follows() -> None:
    """Listing the pruned weights changes neither the codes of the kept ones nor what they learn."""
    plan, state = model("batch", 0.2)
    made, data = IntegerEngine(plan, bits=4), examples(16, SHAPE, 10)
    how = LocalTraining(epochs=1, batch_size=16, lr=0.01, momentum=0.0, weight_decay=0.0)
    sums: GradientSums = {}
    trained, loss = made.train(state, data, how, seed=0)
    other, other_loss = made.train(state, data, how, seed=0, gradient_sums=sums)
    assert loss == other_loss
    assert list(sums) == list(plan.prunable)
    for name, gradient in sums.items():
        mask, before = state.masks[name], state.weights[name]
        assert np.abs(gradient[~mask]).max() > 0, name
        for after in (trained, other):
            moved = (before - after.weights[name]) / how.lr
            assert (moved[~mask] == 0).all()
            # Weights move in steps of their fixed point, rounded at random.
            np.testing.assert_allclose(moved[mask], gradient[mask], rtol=1e-3, atol=1e-5)


def test_a_step_goes_down() -> None:
    plan, state = model("batch", 1.0)
    made, data = IntegerEngine(plan), digits.train_data().take(np.arange(64))
    how = LocalTraining(epochs=30, batch_size=64, lr=0.05, momentum=0.0, weight_decay=0.0)
    losses = [made.train(state, data, replace(how, epochs=e), seed=0)[1] for e in (1, 5, 10)]
    assert losses[0] > losses[1] > losses[2]


def test_weight_decay_shrinks_what_has_no_gradient() -> None:
    plan, state = model("batch", 1.0)
    made, data = IntegerEngine(plan), examples(16, SHAPE, 10)
    how = LocalTraining(epochs=1, batch_size=16, lr=0.01, momentum=0.0, weight_decay=0.0)
    plain, _ = made.train(state, data, how, seed=0)
    decayed, _ = made.train(state, data, replace(how, weight_decay=1.0), seed=0)
    for name, weight in state.weights.items():
        np.testing.assert_allclose(
            plain.weights[name] - decayed.weights[name], 0.01 * weight, rtol=1e-3, atol=1e-6
        )
