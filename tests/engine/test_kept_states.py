"""Engines take a model as dense arrays or as kept values, and return the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedkit.engine.base import Engine, GradientSums, LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.ops.registry import FAMILIES
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.sparse.kept import KeptWeights, kept_weights
from fedkit.sparse.packed import packed
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples
from tests.engine.ops.examples import numbered, plan_of
from tests.engine.plan.plans import PlanCase

HOW = LocalTraining(epochs=1, batch_size=8, lr=0.05, momentum=0.9, weight_decay=1e-3)

CONVOLUTIONS = {
    f"{kind}-{number}": example
    for kind in ("conv", "transposed-conv")
    for number, example in enumerate(FAMILIES[kind].examples)
}
MAKERS: dict[str, Callable[[Plan], Engine]] = {
    "sparse": SparseEngine,
    "integer": lambda plan: IntegerEngine(plan, bits=8),
}


def compact(state: ModelState) -> ModelState:
    masks = packed(state.masks)
    return ModelState(kept_weights(state.weights, masks), state.stats, masks)


def everything(engine: Engine, case: PlanCase, state: ModelState) -> list[bytes]:
    """Return the bits that an engine gives for a state, by every way into it."""
    data = Examples(case.inputs, case.targets)
    amounts = {name: 3 for name in state.masks}
    trained, loss = engine.train(state, data, HOW, seed=1)
    first = frozenset(list(state.weights)[:1])
    part, _ = engine.train(state, data, replace(HOW, trained=first), seed=2)
    sums: GradientSums = {}
    summed, _ = engine.train(state, data, HOW, 3, sums)
    top = engine.top_gradients(state, data, amounts)
    arrays = [
        *(array for model in (trained, part, summed) for array in model.weights.values()),
        *(array for model in (trained, part, summed) for array in model.masks.values()),
        *(array for found in top.values() for array in (found.indices, found.values)),
        *(np.array([loss, engine.loss(state, data)]), engine.outputs(state, case.inputs)),
        *sums.values(),
    ]
    return [array.tobytes() for array in arrays]


@pytest.mark.parametrize("density", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("make", MAKERS)
def test_kept_values_are_as_good_as_dense_arrays(make: str, name: str, density: float) -> None:
    case = numbered(plan_of(CONVOLUTIONS[name]), density)
    engine = MAKERS[make](case.plan)
    expected = everything(engine, case, case.state)
    assert everything(engine, case, compact(case.state)) == expected


@pytest.mark.parametrize("density", [0.3, 0.8])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_what_is_trained_holds_kept_values_alone(name: str, density: float) -> None:
    case = numbered(plan_of(CONVOLUTIONS[name]), density)
    trained, _ = SparseEngine(case.plan).train(
        case.state, Examples(case.inputs, case.targets), HOW, seed=1
    )
    assert isinstance(trained.weights, KeptWeights)
    for layer, mask in case.state.masks.items():
        assert len(trained.weights.kept[layer]) == mask.sum()
        assert not trained.weights[layer][~mask].any()
