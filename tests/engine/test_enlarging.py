"""Models that enlarge maps train as torch trains them, without torch."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from fedkit.engine.base import GradientSums, LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.integer.inference import integers
from fedkit.engine.plan.capture import capture
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.sparse.state import ModelState, Weights, apply_masks
from fedkit.tasks.task import Examples, cross_entropy
from tests.enlarging import KINDS, built

HOW = LocalTraining(epochs=2, batch_size=5, lr=0.05, momentum=0.9, weight_decay=0.01)


def data(shape: tuple[int, ...], count: int = 10) -> Examples:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((count, *shape), np.float32)
    return Examples(inputs, random.integers(0, 2, count))


def pruned(state: ModelState, density: float) -> ModelState:
    """Return a state with random masks."""
    random = np.random.default_rng(1)
    masks = {name: random.random(mask.shape) < density for name, mask in state.masks.items()}
    return ModelState(apply_masks(state.weights, masks), state.stats, masks)


def assert_same(found: Weights, wanted: Weights) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        most = max(np.abs(values).max(), 1e-6)
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5 * most, err_msg=name)


@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_sparse_engine_trains_as_torch_does(kind: str, density: float) -> None:
    model, shape = built(kind)
    torch_engine = TorchEngine(model, cross_entropy)
    state = pruned(torch_engine.initial_state(), density)
    expected, loss = torch_engine.train(state, data(shape), HOW, seed=0)
    plan = capture(model, shape)
    assert plan.layout == torch_engine.layout
    found, own = SparseEngine(plan).train(state, data(shape), HOW, seed=0)
    assert abs(loss - own) < 1e-5 * abs(loss)
    assert_same(found.weights, expected.weights)
    assert all((found.weights[n][~mask] == 0).all() for n, mask in state.masks.items())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_all_weights_are_torchs(kind: str) -> None:
    model, shape = built(kind)
    torch_engine = TorchEngine(model, cross_entropy)
    state, engine = pruned(torch_engine.initial_state(), 0.3), SparseEngine(capture(model, shape))
    wanted = torch_engine.gradients(state, data(shape))
    assert_same(engine.gradients(state, data(shape)), wanted)
    amounts = {name: 1 + int((~mask).sum()) // 3 for name, mask in state.masks.items()}
    tops = engine.top_gradients(state, data(shape), amounts)
    for name, top in torch_engine.top_gradients(state, data(shape), amounts).items():
        least = np.abs(top.values).min()
        clear = top.indices[np.abs(top.values) > least * (1 + 1e-4)]
        assert set(clear.tolist()) <= set(tops[name].indices.tolist())
        np.testing.assert_array_equal(state.masks[name].reshape(-1)[tops[name].indices], False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_integer_engine_comes_near(kind: str) -> None:
    model, shape = built(kind)
    state, plan = TorchEngine(model, cross_entropy).initial_state(), capture(model, shape)
    wanted, _ = SparseEngine(plan).train(state, data(shape), HOW, seed=0)
    found, _ = IntegerEngine(plan).train(state, data(shape), HOW, seed=0)
    for name, values in wanted.weights.items():
        moved, own = values - state.weights[name], found.weights[name] - state.weights[name]
        near = np.sum(moved * own) / (np.linalg.norm(moved) * np.linalg.norm(own))
        assert near > 0.95, name


@pytest.mark.parametrize("kind", ["decoder", "separable", "odd"])
def test_the_integer_engine_has_gradients_of_all_weights(kind: str) -> None:
    model, shape = built(kind)
    state = pruned(TorchEngine(model, cross_entropy).initial_state(), 0.6)
    plan = capture(model, shape)
    wanted = SparseEngine(plan).gradients(state, data(shape))
    sums: GradientSums = {}
    engine = IntegerEngine(plan)
    for name, gradient in engine.gradients(state, data(shape)).items():
        along = (gradient * wanted[name]).sum()
        assert along > 0.9 * np.linalg.norm(gradient) * np.linalg.norm(wanted[name]), name
    found, _ = engine.train(state, data(shape), HOW, 0, sums)
    assert sums.keys() == state.masks.keys()
    assert all((found.weights[n][~mask] == 0).all() for n, mask in state.masks.items())


@pytest.mark.parametrize("kind", ["decoder", "separable"])
def test_integers_of_a_transposed_layer_are_told_by_its_weights_alone(kind: str) -> None:
    """Several steps share a channel of the model, so that it has no codes of its own there."""
    model, shape = built(kind)
    state = pruned(TorchEngine(model, cross_entropy).initial_state(), 0.6)
    engine, inputs = IntegerEngine(capture(model, shape)), data(shape).inputs
    found = integers(engine, state)
    transposed = {
        f"{name}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.ConvTranspose2d)
    }
    assert transposed and found.weights.keys() == state.masks.keys() - transposed
    assert found.outputs.keys().isdisjoint(transposed)
    assert all((found.state.weights[n][~mask] == 0).all() for n, mask in state.masks.items())
    wanted, again = engine.outputs(state, inputs), engine.outputs(found.state, inputs)
    np.testing.assert_allclose(again, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())
