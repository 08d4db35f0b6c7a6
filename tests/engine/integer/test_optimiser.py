"""Integer SGD moves weights as SGD in float64 does, whatever their sizes and those of the steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from fedkit.core.errors import FleetError
from fedkit.engine.base import LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.integer.integer_network import IntegerNetwork
from fedkit.engine.integer.optimiser import Sgd
from fedkit.engine.kernels import native
from fedkit.engine.plan.capture import capture
from fedkit.engine.torch import TorchEngine
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples, cross_entropy
from tests.engine.integer.networks import network_of

BACKENDS = ("numpy", *native.available())


def two_layers(weight: float, seed: int) -> IntegerNetwork:
    """Return a network whose middle layer keeps two rows of four weights of about this size."""
    values = np.random.default_rng(seed).standard_normal((5, 4, 1, 1)) * weight
    mask = np.zeros(values.shape, np.bool_)
    mask[[0, 2]] = True
    return network_of(values.astype(np.float32), mask, 8)


def kernels_of(backend: str) -> native.Kernels | None:
    return None if backend == "numpy" else native.load_kernels(backend)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=40)
@given(
    weight=st.sampled_from([0.0, 1e-30, 1e-6, 1e-3, 1.0, 1e4, 1e20]),
    push=st.sampled_from([0.0, 1e-20, 1e-6, 1e-2, 1.0, 100.0, 1e20]),
    momentum=st.sampled_from([0.0, 0.9, 0.999, 0.99999, 1.0]),
    decay=st.sampled_from([0.0, 1e-4, 0.1]),
    seed=st.integers(0, 2**16),
)
@example(weight=0.0, push=1.0, momentum=0.9, decay=0.0, seed=0)
@example(weight=1.0, push=100.0, momentum=1.0, decay=0.1, seed=0)
@example(weight=0.0, push=1e-20, momentum=0.0, decay=0.0, seed=0)
def test_weights_follow_sgd_in_float64(
    backend: str, weight: float, push: float, momentum: float, decay: float, seed: int
) -> None:
    network, count, lr = two_layers(weight, seed), 12, 0.5
    optimiser = Sgd(network, kernels_of(backend), momentum, decay, seed)
    rng, kept = np.random.default_rng(seed), len(network.part("middle", network.weights))
    real, velocity = network.real("middle").copy(), np.zeros(kept)
    largest = np.abs(real).max()
    for _ in range(count):
        # One row's gradients have a unit 1,000 times that of the other.
        units = np.array([push, 0.0, push / 1000, 0.0, 0.0]) / 2.0**20 / lr
        slopes = rng.integers(-(2**20), 2**20, kept)
        gradient = np.zeros(len(network.weights), np.int64)
        network.part("middle", gradient)[:] = slopes
        optimiser.step(gradient, {"middle": units}, lr)
        slope = slopes * np.repeat(units, [4, 0, 4, 0, 0])
        velocity = momentum * velocity + slope + decay * real
        real = real - lr * velocity
        largest = max(largest, np.abs(real).max(), lr * np.abs(velocity).max())
    # Multipliers have 15 bits; the largest number of all has 22 or more, rounded in each step.
    reach = count * count * max(push, largest * decay)
    allowed = reach * 2.0**-14 + count * largest * 2.0**-21 + 2.0**-60
    assert np.abs(network.real("middle") - real).max() <= allowed


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_of_zeros_moves_as_far_as_it_should(backend: str) -> None:
    network = two_layers(0.0, 0)
    optimiser = Sgd(network, kernels_of(backend), 0.9, 0.0, 0)
    gradient = np.zeros(len(network.weights), np.int64)
    network.part("middle", gradient)[:] = -(2**15)
    for _ in range(20):
        optimiser.step(gradient, {"middle": np.full(5, 2.0**-15)}, 0.5)
    expected = 0.5 * math.fsum(0.9**n for k in range(20) for n in range(k + 1))
    assert network.real("middle") == pytest.approx(expected, rel=1e-4)


def test_a_step_beyond_float32_is_refused_by_name() -> None:
    network = two_layers(1.0, 0)
    gradient = np.full(len(network.weights), 2**20)
    optimiser = Sgd(network, None, 0.9, 0.0, 0)
    for worth in (1e35, math.inf, math.nan):
        with pytest.raises(FleetError, match=r"a step moves middle by up to .*lower lr \(--lr\)"):
            optimiser.step(gradient, {"middle": np.full(5, worth)}, 1.0)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize(("lr", "steps"), [(0.1, 5), (0.5, 20)])
def test_biases_of_zero_train_as_in_float(backend: str, lr: float, steps: int) -> None:
    """One class only: every step moves both biases the same way."""
    model = nn.Sequential(nn.Linear(4, 2))
    nn.init.zeros_(model[0].bias)  # type: ignore[arg-type]
    reference = TorchEngine(model, cross_entropy)
    state = reference.initial_state()
    inputs = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32) / 100
    data = Examples(inputs, np.ones(8, np.int64))
    how = LocalTraining(steps, 8, lr, 0.9, 0.0)
    expected, loss = reference.train(state, data, how, 0)
    plan = capture(reference.module(state), (4,))
    found, found_loss = IntegerEngine(plan, state, backend=backend).train(state, data, how, 0)
    bias = expected.weights["0.bias"]
    assert abs(bias[1]) > {5: 0.5, 20: 5.0}[steps]
    assert found.weights["0.bias"] == pytest.approx(bias, rel=2e-3)
    assert found.weights["0.weight"] == pytest.approx(expected.weights["0.weight"], abs=2e-2)
    assert found_loss == pytest.approx(loss, rel=2e-2)


def test_loading_places_points_anew() -> None:
    network = two_layers(0.0, 0)
    network.make_room("middle", 1e6, 1e6)
    coarse = network.points["middle"]
    masks = network.masks
    weights = {name: np.full(mask.shape, 0.01, np.float32) * mask for name, mask in masks.items()}
    network.load(ModelState(weights, {}, masks))
    assert network.points["middle"] > coarse
    assert network.real("middle") == pytest.approx(0.01, rel=1e-6)
