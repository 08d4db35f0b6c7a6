"""Everything that does not fit is an error with a message, before a kernel sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedkit.core.errors import EngineError, PlanError
from fedkit.engine.base import LocalTraining
from fedkit.engine.plan.plan import VERSION, Conv, Copy, verify
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.sparse.program import SparseProgram
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples
from tests.engine.bad_states import (
    BAD_STATES,
    BIAS,
    LAYER,
    inputs,
)
from tests.engine.sparse.cases import engines, examples, pruned, zoo

HOW = LocalTraining(epochs=1, batch_size=8, lr=0.1, momentum=0.9, weight_decay=1e-2)
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def made() -> tuple[SparseEngine, ModelState]:
    reference, engine = engines(zoo("resnet8", SHAPE), SHAPE)
    return engine, pruned(reference.initial_state(), 0.3)


@pytest.fixture
def program(made: tuple[SparseEngine, ModelState]) -> SparseProgram:
    engine, state = made
    return engine.program(state, "train", 8)


# States


@pytest.mark.parametrize("message", BAD_STATES)
def test_a_state_that_does_not_fit(message: str, made: tuple[SparseEngine, ModelState]) -> None:
    engine, good = made
    bad, data = BAD_STATES[message](good), examples(8, SHAPE)
    calls: list[Callable[[], object]] = [
        lambda: engine.train(bad, data, HOW, 0),
        lambda: engine.norm_moments(bad, data),
        lambda: engine.loss(bad, data),
        lambda: engine.outputs(bad, data.inputs),
        lambda: engine.top_gradients(bad, data, {LAYER: 1}),
        lambda: engine.gradients(bad, data),
    ]
    for call in calls:
        with pytest.raises(EngineError, match=message):
            call()
    assert np.isfinite(engine.loss(good, data))  # and the engine goes on


# Examples


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (inputs(8, 1, 8, 7), r"float32 \(8, 1, 8, 7\); the plan takes .* float32 \[n, 1, 8, 8\]"),
        (inputs(8, 8, 8), r"inputs are float32 \(8, 8, 8\)"),
        (inputs(8, 64), r"inputs are float32 \(8, 64\)"),
        (inputs(8), r"inputs are float32 \(8,\)"),
        (inputs(8, 1, 8, 8, 1), r"inputs are float32 \(8, 1, 8, 8, 1\)"),
    ],
)
def test_inputs_that_do_not_fit(
    bad: NDArray[Any], message: str, made: tuple[SparseEngine, ModelState]
) -> None:
    engine, state = made
    data = Examples(bad, np.zeros(8, np.int64))
    with pytest.raises(EngineError, match=message):
        engine.train(state, data, HOW, 0)
    with pytest.raises(EngineError, match=message):
        engine.outputs(state, bad)


def test_no_examples(made: tuple[SparseEngine, ModelState]) -> None:
    engine, state = made
    none = examples(0, SHAPE)
    calls: list[Callable[[], object]] = [
        lambda: engine.train(state, none, HOW, 0),
        lambda: engine.norm_moments(state, none),
        lambda: engine.loss(state, none),
        lambda: engine.outputs(state, none.inputs),
        lambda: engine.top_gradients(state, none, {LAYER: 1}),
    ]
    for call in calls:
        with pytest.raises(EngineError, match="a batch of 0 examples"):
            call()


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (np.arange(9), "a batch of 9 examples does not fit: memory is planned for 1 to 8"),
        (np.arange(0), "a batch of 0 examples does not fit"),
        (np.array([0, 20]), "a batch picks examples 0 to 20 of 20; positions count from 0"),
        (np.array([-1, 3]), "a batch picks examples -1 to 3"),
    ],
)
def test_an_order_that_does_not_fit(
    order: NDArray[np.int64], message: str, program: SparseProgram
) -> None:
    with pytest.raises(EngineError, match=message):
        program.forward(examples(20, SHAPE).inputs, order)


def test_orders_and_targets_of_any_integer_type_and_stride_mean_the_same(
    program: SparseProgram,
) -> None:
    data = examples(20, SHAPE)
    order = np.arange(0, 16, 2)
    program.forward(data.inputs, order)
    expected = program.outputs()
    loss = program.loss(data.targets[order])
    wide = np.repeat(data.targets[order], 3)
    for kind in (np.int32, np.uint8, np.int16):
        program.forward(data.inputs, order.astype(kind))
        assert program.outputs().tobytes() == expected.tobytes()
        assert program.loss(data.targets[order].astype(kind)) == loss
    program.forward(data.inputs, np.arange(16)[::2])
    assert program.outputs().tobytes() == expected.tobytes()
    assert program.loss(wide[::3]) == loss


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.array([0, 1, 2, 5]), "targets are from 0 to 5; the model has 5 classes"),
        (np.array([0, 1, -1, 2]), "targets are from -1 to 2"),
        (np.array([0, 1, 2]), r"targets are int64 \(3,\); .* has 4 examples"),
        (np.array([], np.int64), r"targets are int64 \(0,\)"),
        (np.array([[0, 1, 2, 3]]), r"targets are int64 \(1, 4\)"),
        (np.array([0.0, 1, 2, 3]), "targets are float64"),
        (np.array([True] * 4), "targets are bool"),
    ],
)
def test_targets_that_do_not_fit(
    targets: NDArray[Any], message: str, program: SparseProgram
) -> None:
    program.forward(examples(20, SHAPE).inputs, np.arange(4))
    with pytest.raises(EngineError, match=message):
        program.loss(targets)


def test_targets_before_any_batch_ran(made: tuple[SparseEngine, ModelState]) -> None:
    engine, state = made
    fresh = SparseEngine(engine.plan).program(state, "train", 4)
    for count in (0, 4):
        with pytest.raises(EngineError, match="has 0 examples"):
            fresh.loss(np.zeros(count, np.int64))


def test_layers_that_cannot_be_pruned(made: tuple[SparseEngine, ModelState]) -> None:
    engine, state = made
    with pytest.raises(EngineError, match=r"7.bias, nothing cannot be pruned; .* 0.0.weight, "):
        engine.top_gradients(state, examples(8, SHAPE), {"nothing": 1, BIAS: 2, LAYER: 3})


# Plans


def test_a_plan_of_another_version(made: tuple[SparseEngine, ModelState]) -> None:
    with pytest.raises(PlanError, match=f"version {VERSION + 1}, this program reads {VERSION}"):
        SparseEngine(replace(made[0].plan, version=VERSION + 1))


def test_a_plan_that_would_read_beyond_its_tensors(made: tuple[SparseEngine, ModelState]) -> None:
    plan = made[0].plan
    first = plan.ops[0]
    assert isinstance(first, Conv)
    wrong = replace(plan, ops=(replace(first, padding=(0, 0)), *plan.ops[1:]))
    with pytest.raises(PlanError, match=r"op 0 .conv. turns a plane"):
        SparseEngine(wrong)


def test_a_plan_with_a_tensor_that_nothing_reads(made: tuple[SparseEngine, ModelState]) -> None:
    """Its gradient would be whatever lies in its memory."""
    plan = made[0].plan
    more = Copy(len(plan.tensors) - 1, len(plan.tensors))
    tensors = (*plan.tensors, plan.tensors[-1])
    with pytest.raises(PlanError, match=f"tensor {len(plan.tensors)} is neither read nor the out"):
        verify(replace(plan, tensors=tensors, ops=(*plan.ops, more)))
