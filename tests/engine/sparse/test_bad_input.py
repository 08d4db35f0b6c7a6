"""Everything that does not fit is an error with a message, before a kernel sees it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedkit.core.errors import EngineError, PlanError
from fedkit.engine.base import LocalTraining
from fedkit.engine.ops.copy import Copy
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.plan import verify
from fedkit.engine.plan.structure import VERSION
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.sparse.program import SparseProgram
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples
from tests.engine.bad_input import (
    BAD_INPUTS,
    BAD_ORDERS,
    BAD_STATES,
    BAD_TARGETS,
    BIAS,
    LAYER,
    calls,
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
    for call in calls(engine, bad, data, HOW):
        with pytest.raises(EngineError, match=message):
            call()
    assert np.isfinite(engine.loss(good, data))  # and the engine goes on


# Examples


@pytest.mark.parametrize(("bad", "message"), BAD_INPUTS)
def test_inputs_that_do_not_fit(
    bad: NDArray[Any], message: str, made: tuple[SparseEngine, ModelState]
) -> None:
    engine, state = made
    data = Examples(bad, np.zeros(8, np.int64))
    for call in calls(engine, state, data, HOW):
        with pytest.raises(EngineError, match=message):
            call()


def test_no_examples(made: tuple[SparseEngine, ModelState]) -> None:
    engine, state = made
    none = examples(0, SHAPE)
    for call in calls(engine, state, none, HOW):
        with pytest.raises(EngineError, match="a batch of 0 examples"):
            call()


@pytest.mark.parametrize(("order", "message"), BAD_ORDERS)
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


@pytest.mark.parametrize(("targets", "message"), BAD_TARGETS)
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
