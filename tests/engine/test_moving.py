"""Models that put values elsewhere, or compute with numbers, train as torch trains them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedkit.engine.base import LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.plan.capture import capture
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.tasks.task import Examples, cross_entropy
from tests.calls import Calls
from tests.moving import TRAINED

HOW = LocalTraining(epochs=2, batch_size=5, lr=0.05, momentum=0.9, weight_decay=0.01)


def data(shape: tuple[int, ...]) -> Examples:
    random = np.random.default_rng(0)
    return Examples(random.standard_normal((10, *shape), np.float32), random.integers(0, 2, 10))


def model_of(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    make, shape = TRAINED[kind]
    return make().train(), shape


@pytest.mark.parametrize("kind", TRAINED)
def test_the_sparse_engine_trains_as_torch_does(kind: str) -> None:
    model, shape = model_of(kind)
    torch_engine = TorchEngine(model, cross_entropy)
    state = torch_engine.initial_state()
    expected, loss = torch_engine.train(state, data(shape), HOW, seed=0)
    found, own = SparseEngine(capture(model, shape)).train(state, data(shape), HOW, seed=0)
    assert abs(loss - own) < 1e-5 * abs(loss)
    for name, values in expected.weights.items():
        most = np.abs(values).max()
        np.testing.assert_allclose(found.weights[name], values, rtol=0, atol=1e-5 * most)


@pytest.mark.parametrize("kind", TRAINED)
def test_the_integer_engine_comes_near(kind: str) -> None:
    model, shape = model_of(kind)
    state = TorchEngine(model, cross_entropy).initial_state()
    plan = capture(model, shape)
    wanted, _ = SparseEngine(plan).train(state, data(shape), HOW, seed=0)
    found, _ = IntegerEngine(plan).train(state, data(shape), HOW, seed=0)
    for name, values in wanted.weights.items():
        moved, own = values - state.weights[name], found.weights[name] - state.weights[name]
        near = np.sum(moved * own) / (np.linalg.norm(moved) * np.linalg.norm(own))
        assert near > 0.95, name


def test_a_part_that_is_taken_and_its_whole_give_their_gradients_to_one_source() -> None:
    """What lies before a split is read by both halves, one of them twice, and as it is."""

    def moves(x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, 1)
        return torch.cat([x, right.flip(2), left, right], 1)

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Calls(moves),
        nn.Flatten(),
        nn.Linear(160, 2),
    )
    engine = TorchEngine(model, cross_entropy)
    state = engine.initial_state()
    expected, _ = engine.train(state, data((2, 6, 6)), HOW, seed=0)
    plan = capture(model, (2, 6, 6))
    found, _ = SparseEngine(plan).train(state, data((2, 6, 6)), HOW, seed=0)
    for name, values in expected.weights.items():
        np.testing.assert_allclose(found.weights[name], values, rtol=0, atol=2e-5)
