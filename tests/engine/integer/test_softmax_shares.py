"""Softmax in integers against the real one, and attention where numbers leave what is usual."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedkit.core.errors import EngineError, FleetError
from fedkit.engine.base import LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.integer.softmax_shares import MOST_SCORE, shares_of
from fedkit.engine.kernels import native
from fedkit.engine.kernels.native import Kernels
from fedkit.engine.ops.add import Add
from fedkit.engine.ops.family import Example
from fedkit.engine.plan.attention import AttentionOp
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.embedding import Embedding
from fedkit.engine.plan.plan import verify
from fedkit.engine.plan.product import Product
from fedkit.engine.plan.softmax import SoftmaxOp
from fedkit.engine.plan.structure import Plan, StoredTensor
from fedkit.tasks.task import Examples
from tests.engine.integer import steps
from tests.engine.integer.extreme import extreme
from tests.engine.ops.examples import AROUND, case_of, numbered, plan_of
from tests.engine.plan.plans import PlanCase
from tests.naive import attention as slow
from tests.sets import drawn

SCORE = st.integers(-MOST_SCORE, MOST_SCORE)


@settings(max_examples=drawn(100), deadline=None)
@given(
    st.lists(SCORE, min_size=1, max_size=12),
    st.one_of(st.just(0.0), st.floats(1e-9, 1e9)),
    st.integers(2, 15),
)
@example([MOST_SCORE, -MOST_SCORE], 1e-4, 15)
@example([0, 1, 2], 11.0, 8)
def test_shares_are_those_of_the_real_softmax(row: list[int], unit: float, bits: int) -> None:
    how = shares_of(unit, bits, 14)
    found = how.of(np.array([row]))[0]
    assert found.tolist() == slow.shares(row, how)
    real = np.exp((np.array(row, np.float64) - max(row)) * unit)
    # Each code is off by half a step, and by 2e-4 of itself.
    off = len(row) * (0.6 / how.top + 3e-4) + 2.0**-14
    np.testing.assert_allclose(found / 2**14, real / real.sum(), atol=off, rtol=0)
    assert abs(int(found.sum()) - 2**14) <= len(row)


@pytest.mark.parametrize("bits", [2, 8, 15])
@pytest.mark.parametrize("unit", [0.0, 1e-12, 1e-4, 0.01, 1.0, 16.0, 1e12])
def test_kernels_give_the_shares_of_every_difference(unit: float, bits: int) -> None:
    """Of two scores that lie any distance apart that they may."""
    below = np.arange(0, 2 * MOST_SCORE + 1, 7)
    how = shares_of(unit, bits, 14)
    rows = np.stack([np.full_like(below, MOST_SCORE), MOST_SCORE - below], 1)
    expected = [slow.shares(row, how) for row in rows[:: 1 if bits == 8 else 50].tolist()]
    assert how.of(rows)[:: 1 if bits == 8 else 50].tolist() == expected


def test_what_is_not_seen_has_no_share() -> None:
    how, seen = shares_of(0.1, 8, 14), np.array([[True, False, True]])
    found = how.of(np.array([[3, 9000, 5]]), seen)[0]
    assert found[1] == 0
    assert found[[0, 2]].tolist() == slow.shares([3, 5], how)


# Attention


def _trained(case: PlanCase, kernels: Kernels | None, bits: int, rule: str) -> steps.Trace | str:
    """Return what two steps leave, or why a step was refused: float32 cannot hold what it moves."""
    try:
        return steps.train(steps.make(case, kernels, bits, rule), case, kernels)
    except FleetError as error:
        return str(error)


def assert_same_everywhere(case: PlanCase, bits: int, rule: str = "shiftquant") -> None:
    expected = _trained(case, None, bits, rule)
    for simd in native.available():
        found = _trained(case, native.load_kernels(simd), bits, rule)
        if isinstance(expected, str) or isinstance(found, str):
            assert found == expected, simd
        else:
            assert steps.mismatches(expected, found) == [], simd


SHAPES = ((3, 1, 9), (4, 1, 9), (4, 1, 9), (6, 1, 9), (6, 1, 9))
TRIED = {
    "plain": Example(AttentionOp(1, 2, 3, 4, 2, 0.7, False), SHAPES),
    "causal": Example(AttentionOp(1, 2, 3, 4, 2, 0.7, True), SHAPES),
    "negative": Example(AttentionOp(1, 2, 3, 4, 2, -0.7, True), SHAPES),
    "no-scale": Example(AttentionOp(1, 2, 3, 4, 2, 0.0, False), SHAPES),
    "steep": Example(AttentionOp(1, 2, 3, 4, 1, 1e6, False), SHAPES),
    "one-place": Example(
        AttentionOp(1, 2, 3, 4, 1, 1.0, True),
        ((2, 2, 2), (1, 1, 1), (1, 1, 1), (3, 1, 1), (3, 1, 1)),
    ),
    "softmax": Example(SoftmaxOp(1, 2), ((7, 1, 3),) * 3),
    "product": Example(Product(1, 2, 3), ((3, 2, 7), (5, 2, 7), (4, 2, 5), (4, 2, 7))),
}


@pytest.mark.parametrize("name", TRIED)
@pytest.mark.parametrize("rule", RULES)
def test_kernels_compute_the_integers_of_numpy_at_any_numbers(name: str, rule: str) -> None:
    choose = random.Random(len(name))
    for bits in range(2, 9):
        case = case_of(TRIED[name], choose.choice(AROUND), 0.7)
        assert_same_everywhere(extreme(case, choose.choice), bits, rule)


def test_one_tensor_may_be_queries_keys_and_values() -> None:
    """Its gradient is the sum of three, the first of which may find something there."""
    one, shape = (1, 1), (4, 1, 7)
    ops = (
        Conv(0, 1, "first", "bias", one, one, (0, 0), one, 1),
        AttentionOp(1, 1, 1, 2, 2, 0.5, False),
        Add(1, 2, 3),
        Product(3, 3, 4),
        Conv(4, 5, "last", None, (1, 4), one, (0, 0), one, 1),
    )
    shapes = ((3, 1, 4), (4, 1, 4), (4, 1, 4), (4, 1, 4), (4, 1, 4), (3, 1, 1))
    assert shape[0] == shapes[1][0]
    weights = {"first": (4, 3, 1, 1), "bias": (4,), "last": (3, 4, 1, 4)}
    tensors = tuple(StoredTensor(each) for each in shapes)
    plan = Plan(weights, {}, ("first", "last"), tensors, ops, 5)
    verify(plan)
    for bits in (8, 4):
        assert_same_everywhere(numbered(plan), bits)


def test_many_places_with_the_widest_gradients_stay_in_their_sums() -> None:
    """300 queries that all see one key: the largest sum there is."""
    shape = (2, 1, 300)
    tried = Example(AttentionOp(1, 2, 3, 4, 1, 1.0, False), ((1, 1, 300), *[shape] * 4))
    case = case_of(tried)
    case = replace(case, inputs=case.inputs[:2], targets=case.targets[:2])
    for rule in ("shiftquant", "per-tensor"):
        assert_same_everywhere(case, 8, rule)


def test_sums_that_may_leave_int32_are_refused() -> None:
    shape = (40_000, 1, 1)
    tried = Example(AttentionOp(1, 2, 3, 4, 1, 1.0, False), ((1, 1, 1), *[shape] * 4))
    case = case_of(tried)
    engine = IntegerEngine(case.plan, bits=8)
    with pytest.raises(EngineError, match=r"the sums of attention 3 may reach .* use fewer bits"):
        engine.loss(case.state, Examples(case.inputs, case.targets))


# Tokens


def test_tokens_beyond_8_bits_are_refused_by_name() -> None:
    tried = Example(Embedding(0, 1, "table", -1), ((7, 1, 1), (4, 1, 7)), {"table": (129, 4)})
    with pytest.raises(EngineError, match=r"embedding 'table' of 129 rows, where 8 bits tell 128"):
        IntegerEngine(plan_of(tried))


@pytest.mark.parametrize("rows", [1, 2, 128])
def test_every_token_takes_its_row(rows: int) -> None:
    tried = Example(Embedding(0, 1, "table", -1), ((7, 1, 1), (4, 1, 7)), {"table": (rows, 4)})
    case = case_of(tried)
    highest = np.full_like(case.inputs, rows - 1)
    for inputs in (case.inputs, highest):
        assert_same_everywhere(replace(case, inputs=inputs), 8)
        found = IntegerEngine(case.plan).outputs(case.state, inputs)
        table, last = (case.state.weights[n].astype(np.float64) for n in ("table", "last"))
        real = np.einsum("ntc,oct->no", table[inputs], last[:, :, 0])
        assert np.abs(found - real).max() < 0.05 * np.abs(real).max()


def test_tokens_out_of_range_are_refused() -> None:
    tried = Example(Embedding(0, 1, "table", -1), ((7, 1, 1), (4, 1, 7)), {"table": (9, 4)})
    case = case_of(tried)
    engine, wrong = IntegerEngine(case.plan), case.inputs.copy()
    wrong[3, 2] = 9
    with pytest.raises(EngineError, match=r"tokens of 0 to 9; the model's embedding has rows 0"):
        engine.outputs(case.state, wrong)
    with pytest.raises(EngineError, match="inputs hold tokens"):
        engine.train(case.state, Examples(wrong, case.targets), LocalTraining(1, 8, 0.1, 0, 0), 0)
