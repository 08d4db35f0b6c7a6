"""Layers over tokens train as torch trains them, with their weights as the model has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedkit.engine.base import LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.ops.reorder import Reorder
from fedkit.engine.plan.capture import capture
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.tasks.task import Examples, cross_entropy
from tests.engine.sparse.cases import pruned
from tests.tokens import KINDS, NORMED, made

HOW = LocalTraining(epochs=2, batch_size=5, lr=0.05, momentum=0.9, weight_decay=1e-3)
TURNS = {"mixer": 2, "next": 0, "normed": 0}


def data(shape: tuple[int, ...], count: int = 13) -> Examples:
    random = np.random.default_rng(1)
    inputs = random.standard_normal((count, *shape)).astype(np.float32)
    return Examples(inputs, random.integers(0, 3, count))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [0.4, 1.0])
def test_gradients_are_torchs(kind: str, density: float) -> None:
    model, shape = made(kind)
    plan, state = (
        capture(model, shape),
        pruned(TorchEngine(model, cross_entropy).initial_state(), density),
    )
    assert plan.weights["head.weight"] == (3, 6)
    turns = [op for op in plan.ops if isinstance(op, Reorder) and op.order != (0, 1, 2)]
    assert len(turns) <= TURNS[kind]
    examples = data(shape)
    found = SparseEngine(plan).gradients(state, examples)
    module = TorchEngine(model, cross_entropy).module(state).double().train()
    outputs = module(torch.from_numpy(examples.inputs).double())
    F.cross_entropy(outputs, torch.from_numpy(examples.targets)).backward()
    wanted = {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}
    assert found.keys() == set(plan.prunable)
    for name, values in found.items():
        scale = np.abs(wanted[name]).max()
        assert np.abs(values - wanted[name]).max() <= (5e-5 if kind == NORMED else 1e-5) * scale, (
            name
        )


@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_train_them_under_masks(kind: str) -> None:
    model, shape = made(kind)
    plan, state = (
        capture(model, shape),
        pruned(TorchEngine(model, cross_entropy).initial_state(), 0.4),
    )
    by_torch, _ = TorchEngine(model, cross_entropy).train(state, data(shape), HOW, seed=3)
    by_us, _ = SparseEngine(plan).train(state, data(shape), HOW, seed=3)
    for name, values in by_torch.weights.items():
        np.testing.assert_allclose(by_us.weights[name], values, rtol=1e-3, atol=1e-5)
    engines: list[SparseEngine | IntegerEngine] = [SparseEngine(plan)]
    engines += [] if kind == NORMED else [IntegerEngine(plan, bits=8)]
    for engine in engines:
        trained, _ = engine.train(state, data(shape), HOW, seed=3)
        for name, mask in state.masks.items():
            values = trained.weights[name]
            assert values.shape == state.weights[name].shape and not values[~mask].any()
            assert not np.array_equal(values, state.weights[name]), f"{name} did not train"


def test_norms_of_tokens_train_in_integers() -> None:
    """Their gradients of 8 bits point where those of float32 do."""
    model, shape = made(NORMED)
    plan, state = capture(model, shape), TorchEngine(model, cross_entropy).initial_state()
    exact = SparseEngine(plan).gradients(state, data(shape))
    found = IntegerEngine(plan).gradients(state, data(shape))
    for name, gradient in exact.items():
        one, other = gradient.ravel().astype(np.float64), found[name].ravel().astype(np.float64)
        assert one @ other > 0.9 * np.sqrt((one @ one) * (other @ other)), name
