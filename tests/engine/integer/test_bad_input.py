"""What does not fit is an error with a message; what is only odd has the right result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedkit.core.errors import EngineError, PlanError
from fedkit.engine.base import LocalTraining
from fedkit.engine.integer.engine import IntegerEngine, quantize_inputs
from fedkit.engine.integer.program import IntegerProgram
from fedkit.engine.ops.pool import Pool
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.structure import VERSION, Norm, Plan, StoredTensor
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples
from tests.engine.bad_input import (
    BAD_INPUTS,
    BAD_ORDERS,
    BAD_STATES,
    BAD_TARGETS,
    LAYER,
    calls,
)
from tests.engine.sparse.cases import engines, examples, pruned, zoo

HOW = LocalTraining(epochs=1, batch_size=8, lr=0.1, momentum=0.9, weight_decay=1e-2)
SHAPE = (1, 8, 8)
ONE, NONE = (1, 1), (0, 0)

BACKENDS = ("numpy", "native")


@pytest.fixture(scope="module")
def good() -> tuple[Plan, ModelState]:
    reference, engine = engines(zoo("resnet8", SHAPE), SHAPE)
    return engine.plan, pruned(reference.initial_state(), 0.3)


@pytest.fixture(scope="module", params=BACKENDS)
def made(request: pytest.FixtureRequest, good: tuple[Plan, ModelState]) -> IntegerEngine:
    return IntegerEngine(good[0], backend=request.param)


@pytest.fixture
def program(made: IntegerEngine, good: tuple[Plan, ModelState]) -> IntegerProgram:
    return made.program(good[1], "train", 8)


# Choices


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_bits_that_do_not_exist(bits: int, good: tuple[Plan, ModelState]) -> None:
    with pytest.raises(EngineError, match=f"bits is {bits}; integer training takes 2 to 8"):
        IntegerEngine(good[0], bits=bits)


@pytest.mark.parametrize("rule", ["", "per_tensor", "float"])
def test_a_rule_that_does_not_exist(rule: str, good: tuple[Plan, ModelState]) -> None:
    with pytest.raises(EngineError, match=f"gradient is '{rule}'; choose one of per-tensor, shift"):
        IntegerEngine(good[0], gradient=rule)


def test_a_backend_that_does_not_exist(good: tuple[Plan, ModelState]) -> None:
    with pytest.raises(EngineError, match="backend is 'cuda'; choose native, numpy, or ''"):
        IntegerEngine(good[0], backend="cuda")


def test_an_instruction_set_that_does_not_exist(good: tuple[Plan, ModelState]) -> None:
    with pytest.raises(EngineError, match="instruction set 'sse9' cannot be used here"):
        IntegerEngine(good[0], backend="native", simd="sse9")


def test_a_plan_of_another_version(good: tuple[Plan, ModelState]) -> None:
    with pytest.raises(PlanError, match=f"version {VERSION + 1}, this program reads {VERSION}"):
        IntegerEngine(replace(good[0], version=VERSION + 1))


def test_the_initial_state_is_the_one_given(good: tuple[Plan, ModelState]) -> None:
    plan, state = good
    assert IntegerEngine(plan, state).initial_state() is state
    with pytest.raises(EngineError, match="the server has it"):
        IntegerEngine(plan).initial_state()


# States


@pytest.mark.parametrize("message", BAD_STATES)
def test_a_state_that_does_not_fit(
    message: str, made: IntegerEngine, good: tuple[Plan, ModelState]
) -> None:
    bad, data = BAD_STATES[message](good[1]), examples(8, SHAPE)
    for call in calls(made, bad, data, HOW):
        with pytest.raises(EngineError, match=message):
            call()
    assert np.isfinite(made.loss(good[1], data))  # and the engine goes on


# Examples


@pytest.mark.parametrize(("bad", "message"), BAD_INPUTS)
def test_inputs_that_do_not_fit(
    bad: NDArray[Any], message: str, made: IntegerEngine, good: tuple[Plan, ModelState]
) -> None:
    data = Examples(bad, np.zeros(8, np.int64))
    for call in calls(made, good[1], data, HOW):
        with pytest.raises(EngineError, match=message):
            call()


def test_one_nan_among_the_inputs_is_found(
    made: IntegerEngine, good: tuple[Plan, ModelState]
) -> None:
    data = examples(8, SHAPE)
    for value in (np.nan, np.inf, -np.inf):
        data.inputs[3, 0, 2, 5] = value
        with pytest.raises(EngineError, match="hold NaN or infinite values"):
            made.outputs(good[1], data.inputs)


def test_no_examples(made: IntegerEngine, good: tuple[Plan, ModelState]) -> None:
    none, state = examples(0, SHAPE), good[1]
    for call in calls(made, state, none, HOW):
        with pytest.raises(EngineError, match="a batch of 0 examples"):
            call()


@pytest.mark.parametrize(("order", "message"), BAD_ORDERS)
def test_an_order_that_does_not_fit(
    order: NDArray[np.int64], message: str, program: IntegerProgram
) -> None:
    codes, scale = quantize_inputs(examples(20, SHAPE).inputs)
    with pytest.raises(EngineError, match=message):
        program.forward(codes, scale, order)


def test_codes_that_do_not_fit(program: IntegerProgram) -> None:
    codes, scale = quantize_inputs(examples(20, SHAPE).inputs)
    wrong: list[NDArray[Any]] = [codes.astype(np.int16), codes[::2], codes[:, :, :7]]
    for bad in wrong:
        with pytest.raises(EngineError, match=r"plan takes contiguous int8 \[n, 1, 8, 8\]"):
            program.forward(bad, scale, np.arange(4))


@pytest.mark.parametrize(("targets", "message"), BAD_TARGETS)
def test_targets_that_do_not_fit(
    targets: NDArray[Any], message: str, program: IntegerProgram
) -> None:
    program.forward(*quantize_inputs(examples(20, SHAPE).inputs), np.arange(4))
    with pytest.raises(EngineError, match=message):
        program.loss(targets)


def test_targets_before_any_batch_ran(good: tuple[Plan, ModelState]) -> None:
    fresh = IntegerEngine(good[0]).program(good[1], "train", 4)
    for count in (0, 4):
        with pytest.raises(EngineError, match="has 0 examples"):
            fresh.loss(np.zeros(count, np.int64))


def test_layers_that_cannot_be_pruned(made: IntegerEngine, good: tuple[Plan, ModelState]) -> None:
    with pytest.raises(EngineError, match=r"7.bias, nothing cannot be pruned; .* 0.0.weight, "):
        made.top_gradients(good[1], examples(8, SHAPE), {"nothing": 1, "7.bias": 2, LAYER: 3})


# Small plans


def linear(inputs: int, outputs: int = 3, norm: Norm | None = None, bias: bool = False) -> Plan:
    """Return a plan of one linear layer, and one more behind it."""
    weights: dict[str, tuple[int, ...]] = {"w": (outputs, inputs), "fc": (2, outputs)}
    if bias:
        weights |= {"b": (outputs,), "c": (2,)}
    return Plan(
        weights=weights,
        stats={} if norm is None else dict.fromkeys(norm.stats, (outputs,)),
        prunable=("w", "fc"),
        tensors=(
            StoredTensor((inputs, 1, 1)),
            StoredTensor((outputs, 1, 1), norm),
            StoredTensor((2, 1, 1)),
        ),
        ops=(
            Conv(0, 1, "w", "b" if bias else None, ONE, ONE, NONE, ONE, 1),
            Conv(1, 2, "fc", "c" if bias else None, ONE, ONE, NONE, ONE, 1),
        ),
        output=2,
    )


def filled(plan: Plan, value: float = 1.0, seed: int = 0) -> ModelState:
    rng = np.random.default_rng(seed)
    weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in plan.weights.items()}
    weights = {n: (w * value).astype(np.float32) for n, w in weights.items()}
    stats = {name: np.ones(shape, np.float32) for name, shape in plan.stats.items()}
    return ModelState(weights, stats, {n: np.ones(plan.weights[n], bool) for n in plan.prunable})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["batch", "l1-batch"])
def test_a_norm_of_one_value_per_channel(backend: str, kind: Any) -> None:
    plan = linear(4, norm=Norm("norm", kind, 1e-5, None, None))
    engine, state = IntegerEngine(plan, backend=backend), filled(plan)
    one = examples(1, (4, 1, 1), 2)
    message = "norm 'norm' sees one value per channel, .* batches of at least 2 examples"
    calls: list[Callable[[], object]] = [
        lambda: engine.train(state, one, HOW, 0),
        lambda: engine.norm_moments(state, one),
        lambda: engine.gradients(state, one),
    ]
    for call in calls:
        with pytest.raises(EngineError, match=message):
            call()
    assert engine.outputs(state, one.inputs).shape == (1, 2)  # running statistics are many values'
    assert np.isfinite(engine.loss(state, one))


@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_that_may_leave_int32(backend: str) -> None:
    """100,000 taps of 8 bits: the weights all at their largest, so that the sums really would."""
    plan = linear(100_000, 2)
    state = filled(plan)
    state.weights["w"][:] = 1.0
    data = Examples(np.ones((2, 100_000, 1, 1), np.float32), np.array([0, 1]))
    engine = IntegerEngine(plan, backend=backend)
    with pytest.raises(EngineError, match=r"the sums of w may reach 1.6\de\+09, int32 .* than 8"):
        engine.outputs(state, data.inputs)
    with pytest.raises(EngineError, match="the sums of w may reach"):
        engine.gradients(state, data)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_whose_sums_may_leave_int32(backend: str) -> None:
    """A source that 9,000 outputs read, with the finest scales that a rule allows."""
    outputs = 9_000
    plan = Plan(
        weights={"a": (1, 1), "w": (outputs, 1), "fc": (2, outputs)},
        stats={},
        prunable=("a", "w", "fc"),
        tensors=tuple(StoredTensor((channels, 1, 1)) for channels in (1, 1, outputs, 2)),
        ops=tuple(
            Conv(i, i + 1, name, None, ONE, ONE, NONE, ONE, 1)
            for i, name in enumerate(("a", "w", "fc"))
        ),
        output=3,
    )
    state = filled(plan)
    state.weights["w"][:] = 1.0
    state.weights["fc"][:] = ((1e-4,), (-1e-4,))  # no logit wins outright
    data = Examples(np.ones((2, 1, 1, 1), np.float32), np.array([0, 0]))
    engine = IntegerEngine(plan, gradient="per-channel", backend=backend)
    with pytest.raises(EngineError, match="the sums of w may reach"):
        engine.gradients(state, data)
    assert np.isfinite(IntegerEngine(plan, backend=backend).gradients(state, data)["a"]).all()


def pooled(side: int) -> Plan:
    return Plan(
        weights={"fc": (2, 1)},
        stats={},
        prunable=("fc",),
        tensors=(StoredTensor((1, side, side)), StoredTensor((1, 1, 1)), StoredTensor((2, 1, 1))),
        ops=(
            Pool(0, 1, (side, side), ONE, NONE, "mean"),
            Conv(1, 2, "fc", None, ONE, ONE, NONE, ONE, 1),
        ),
        output=2,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mean_of_a_plane_whose_sum_would_leave_int32(backend: str) -> None:
    plan = pooled(260)
    state = filled(plan)
    data = np.full((1, 1, 260, 260), 0.9, np.float32)
    found = IntegerEngine(plan, backend=backend).outputs(state, data)
    np.testing.assert_allclose(found[0], 0.9 * state.weights["fc"][:, 0], rtol=0.02)


# Numbers at the edge


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 1e-20, 1e15])
def test_constant_inputs_of_any_size(
    backend: str, value: float, good: tuple[Plan, ModelState]
) -> None:
    """Every norm sees channels without a range: they are 0, and so are the logits' differences."""
    plan, state = good
    data = examples(8, SHAPE)
    data.inputs[:] = value
    engine = IntegerEngine(plan, backend=backend)
    trained, loss = engine.train(state, data, HOW, 0)
    assert np.isfinite(loss)
    for weights in (trained.weights, trained.stats):
        assert all(np.isfinite(weight).all() for weight in weights.values())
    outputs = engine.outputs(state, data.inputs)
    assert (outputs == outputs[0]).all()


@pytest.mark.parametrize(
    ("largest", "scale"),
    [(127.0, 1.0), (127.5, 2.0), (1.0, 2.0**-6), (0.0, 1.0), (1e-45, 2.0**-155)],
)
def test_inputs_are_stored_in_steps_of_the_least_power_of_two(largest: float, scale: float) -> None:
    data = np.array([[-largest], [0.0], [largest / 2]], np.float32)
    codes, found = quantize_inputs(data)
    assert codes.dtype == np.int8 and found == scale
    assert np.abs(codes.astype(np.float64) * found - data).max() <= scale / 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_of_zeros_gives_its_bias(backend: str) -> None:
    plan = linear(4, bias=True)
    state = filled(plan)
    for tiny in (0.0, 1e-30, 1e-12):
        state.weights["w"][:] = tiny
        state.weights["w"][0] = 0.0
        expected = state.weights["fc"] @ state.weights["b"] + state.weights["c"]
        data = examples(5, (4, 1, 1), 2)
        found = IntegerEngine(plan, backend=backend).outputs(state, data.inputs)
        np.testing.assert_allclose(found, np.tile(expected, (5, 1)), atol=0.03)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_nearly_nothing_beside_others_gives_its_bias(backend: str) -> None:
    plan = linear(4, bias=True)
    state = filled(plan)
    state.weights["w"][1] = 1e-8
    state.weights["b"][1] = 3.0
    data = examples(5, (4, 1, 1), 2)
    hidden = data.inputs.reshape(5, 4) @ state.weights["w"].T + state.weights["b"]
    expected = hidden @ state.weights["fc"].T + state.weights["c"]
    found = IntegerEngine(plan, backend=backend).outputs(state, data.inputs)
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_norm_whose_scale_is_0_gives_its_offset(backend: str) -> None:
    """As the last norm of a block that starts as the identity; read by an op of 15 bits."""
    norm = Norm("norm", "batch", 1e-5, "gamma", "beta")
    plan = Plan(
        weights={"w": (2, 1, 1, 1), "gamma": (2,), "beta": (2,), "fc": (2, 2)},
        stats=dict.fromkeys(norm.stats, (2,)),
        prunable=("w", "fc"),
        tensors=(
            StoredTensor((1, 2, 2)),
            StoredTensor((2, 2, 2), norm),
            StoredTensor((2, 1, 1)),
            StoredTensor((2, 1, 1)),
        ),
        ops=(
            Conv(0, 1, "w", None, ONE, ONE, NONE, ONE, 1),
            Pool(1, 2, (2, 2), ONE, NONE, "mean"),
            Conv(2, 3, "fc", None, ONE, ONE, NONE, ONE, 1),
        ),
        output=3,
    )
    state = filled(plan)
    state.weights["beta"][:] = (0.9, -0.7)
    expected = state.weights["fc"] @ state.weights["beta"]
    for gamma in (0.0, 1e-6, 1e-4):
        state.weights["gamma"][:] = gamma
        found = IntegerEngine(plan, backend=backend).outputs(
            state, examples(5, (1, 2, 2), 2).inputs
        )
        np.testing.assert_allclose(found, np.tile(expected, (5, 1)), atol=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
def test_relu6_keeps_its_steps_however_large_its_input_is(backend: str) -> None:
    plan = linear(1, 2)
    first, hidden, last = plan.tensors
    plan = replace(plan, tensors=(first, replace(hidden, activation="relu6"), last))
    state = filled(plan)
    state.weights["w"][:, 0] = (1.0, -1.0)
    state.weights["fc"][:] = np.eye(2)
    data = np.array([40.0, 5.0, 3.0, -4.0, 0.0], np.float32).reshape(5, 1, 1, 1)
    found = IntegerEngine(plan, backend=backend).outputs(state, data)
    values = data.reshape(5, 1) * [[1.0, -1.0]]
    np.testing.assert_allclose(found, np.clip(values, 0, 6), atol=0.2)
    huge = IntegerEngine(plan, backend=backend).outputs(state, data * np.float32(1e6))
    np.testing.assert_allclose(huge, np.where(values > 0, 6.0, 0.0), atol=0.2)
    assert np.isfinite(
        IntegerEngine(plan, backend=backend).gradients(
            state, Examples(data * np.float32(1e6), np.zeros(5, np.int64))
        )["w"]
    ).all()
