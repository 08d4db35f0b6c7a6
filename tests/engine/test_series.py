"""A model of series trains as torch trains it, and as the same model over maps of height 1."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedkit.engine.base import LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.plan import load_plan, plan_digest, save_plan
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples, cross_entropy
from tests.engine.sparse.cases import pruned
from tests.series import CLASSES, SHAPE, Series, inputs

HOW = LocalTraining(epochs=2, batch_size=5, lr=0.05, momentum=0.9, weight_decay=1e-3)


def data(count: int = 13) -> Examples:
    return Examples(inputs(count), np.random.default_rng(1).integers(0, CLASSES, count))


def as_maps(state: ModelState) -> ModelState:
    """Return the state of the same model over maps."""
    weights = {n: values.reshape(_widened(values.shape)) for n, values in state.weights.items()}
    masks = {n: values.reshape(_widened(values.shape)) for n, values in state.masks.items()}
    return replace(state, weights=weights, masks=masks)


def _widened(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:2], 1, shape[2]) if len(shape) == 3 else shape


@cache
def plan_of(over: int) -> Plan:
    return capture(Series(over), SHAPE if over == 1 else (SHAPE[0], 1, SHAPE[1]))


def of_both(density: float) -> tuple[tuple[Plan, ModelState], tuple[Plan, ModelState]]:
    series = pruned(TorchEngine(Series(), cross_entropy).initial_state(), density)
    return (plan_of(1), series), (plan_of(2), as_maps(series))


def test_a_plan_of_series_is_that_of_maps_but_for_the_shapes_of_weights(
    tmp_path: Path,
) -> None:
    (plan, _), (of_maps, _) = of_both(1.0)
    assert plan.tensors == of_maps.tensors and plan.ops == of_maps.ops
    assert plan.weights["stem.weight"] == (8, 3, 5)
    assert of_maps.weights["stem.weight"] == (8, 3, 1, 5)
    save_plan(plan, tmp_path / "plan.json")
    assert plan_digest(load_plan(tmp_path / "plan.json")) == plan_digest(plan)


@pytest.mark.parametrize("density", [0.3])
def test_both_engines_train_series_as_maps_bit_for_bit(density: float) -> None:
    (plan, series), (of_maps, maps) = of_both(density)
    examples = data()
    flat = replace(examples, inputs=examples.inputs[:, :, None])
    for make in (SparseEngine, lambda plan: IntegerEngine(plan, bits=8)):
        ours, loss = make(plan).train(series, examples, HOW, seed=3)
        theirs, other = make(of_maps).train(maps, flat, HOW, seed=3)
        assert loss == other
        for name, values in theirs.weights.items():
            np.testing.assert_array_equal(ours.weights[name], values.reshape(plan.weights[name]))
            changed = not np.array_equal(ours.weights[name], series.weights[name])
            assert changed, f"{name} did not train"


@pytest.mark.parametrize("density", [0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_gradients_of_series_are_torchs(density: float) -> None:
    (plan, state), _ = of_both(density)
    examples = data()
    found = SparseEngine(plan).gradients(state, examples)
    module = TorchEngine(Series(), cross_entropy).module(state).double().train()
    outputs = module(torch.from_numpy(examples.inputs).double())
    F.cross_entropy(outputs, torch.from_numpy(examples.targets)).backward()
    wanted = {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}
    for name, values in found.items():
        scale = np.abs(wanted[name]).max()
        assert np.abs(values - wanted[name]).max() <= 1e-5 * scale, name
