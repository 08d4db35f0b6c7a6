"""Ops in numpy: a planted one between others, where gradients accumulate and norms are behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import pytest
import torch

from fedkit.core.errors import EngineError
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.kernels import native
from fedkit.engine.ops.add import Add
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.ops.registry import FAMILIES
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.plan import verify
from fedkit.engine.plan.structure import Norm, Plan, PlanOp, StoredTensor, strict
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.sparse.float_op import Floats, NumpyFloatOp, Workspace
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples
from tests.engine.sparse.gradients import by_program, by_torch, worst
from tests.naive import plan as naive


@strict
@dataclass(frozen=True)
class Gate(PlanOp):
    """target = read(value) * read(gate), of one shape."""

    value: int
    gate: int
    target: int
    kind: Literal["gate"] = "gate"

    @property
    def sources(self) -> tuple[int, ...]:
        return self.value, self.gate

    @property
    def rereads(self) -> bool:
        return True

    def problems(self, plan: Plan) -> Iterator[str]:
        if len({plan.tensors[t].shape for t in (*self.sources, self.target)}) > 1:
            yield "has different shapes"


class FloatGate(NumpyFloatOp[Gate]):
    def value(self, *sources: Floats) -> Floats:
        one, other = sources
        return one * other

    def gradients(self, gradient: Floats, *sources: Floats) -> Sequence[Floats]:
        one, other = sources
        return gradient * other, gradient * one


GATE = Family(Gate, (Example(Gate(1, 2, 3), ((2, 3, 4),) * 4),), FloatGate, None)


def multiply(here: naive.Pass, number: int, op: Gate) -> torch.Tensor:
    return here.read(op.value) * here.read(op.gate)


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast(dict[str, Family], FAMILIES), "gate", GATE)
    monkeypatch.setitem(naive.MEANING, cast(type[PlanOp], Gate), multiply)


ONE, SHAPE = (1, 1), (3, 4, 5)


def plan_with_gates(kind: Literal["batch", "l1-batch"], image: bool) -> Plan:
    """Return a plan in which each tensor is read by several ops, a gate first and last.

    Args:
        kind: Of its norms.
        image: Whether a gate reads the input, which needs no gradient.
    """
    norm = [Norm(f"norm{n}", kind, 0.1, f"w{n}", f"b{n}") for n in range(3)]
    ops = (
        Conv(0, 1, "first", "bias", ONE, ONE, (0, 0), ONE, 1),
        Gate(0 if image else 1, 1, 2),
        Add(1, 2, 3),
        Gate(3, 2, 4),
        Gate(4, 4, 5),
        Add(5, 1, 6),
        Conv(6, 7, "last", None, (4, 5), ONE, (0, 0), ONE, 1),
    )
    tensors = (
        StoredTensor(SHAPE),
        StoredTensor(SHAPE, norm[0], "relu"),
        StoredTensor(SHAPE, None, "relu6"),
        StoredTensor(SHAPE, norm[1]),
        StoredTensor(SHAPE, norm[2], "relu"),
        StoredTensor(SHAPE),
        StoredTensor(SHAPE),
        StoredTensor((4, 1, 1)),
    )
    norms: dict[str, tuple[int, ...]] = {f"{p}{n}": (3,) for n in range(3) for p in "wb"}
    weights = {"first": (3, 3, 1, 1), "bias": (3,), **norms, "last": (4, 3, 4, 5)}
    stats: dict[str, tuple[int, ...]] = {name: (3,) for each in norm for name in each.stats}
    plan = Plan(weights, stats, ("first", "last"), tensors, ops, 7)
    verify(plan)
    return plan


def case(plan: Plan, count: int) -> tuple[ModelState, Examples]:
    rng = np.random.default_rng(count)
    weights = {n: rng.normal(0.3, 0.5, s).astype(np.float32) for n, s in plan.weights.items()}
    masks = {n: rng.random(plan.weights[n]) < 0.7 for n in plan.prunable}
    stats = {n: rng.uniform(0.5, 2, s).astype(np.float32) for n, s in plan.stats.items()}
    inputs = rng.standard_normal((count, *SHAPE)).astype(np.float32)
    state = ModelState(weights, stats, {}).with_masks(masks)
    return state, Examples(inputs, rng.integers(0, 4, count))


@pytest.mark.parametrize("count", [2, 16, 19])
@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("kind", ["batch", "l1-batch"])
def test_gradients_are_torchs(kind: Literal["batch", "l1-batch"], image: bool, count: int) -> None:
    plan = plan_with_gates(kind, image)
    state, data = case(plan, count)
    for simd in native.available():
        program = SparseEngine(plan, simd=simd, threads=2).program(state, "train", count + 3)
        loss, found, taken = by_program(program, data)
        expected_loss, expected = by_torch(plan, state, data, taken, torch.float64)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert worst(found, expected)[0] < 1e-4, simd


def test_another_batch_size_and_evaluation_after_it() -> None:
    plan = plan_with_gates("batch", False)
    state, data = case(plan, 19)
    engine, few = SparseEngine(plan), Examples(data.inputs[:5], data.targets[:5])
    one = engine.gradients(state, few)
    engine.gradients(state, data)
    again = engine.gradients(state, few)
    assert all(one[name].tobytes() == again[name].tobytes() for name in one)
    weights, stats = (
        {n: torch.from_numpy(value).double() for n, value in arrays.items()}
        for arrays in (state.weights, state.stats)
    )
    inputs = torch.from_numpy(data.inputs).double()
    expected = naive.run(plan, weights, stats, inputs, training=False).numpy()
    np.testing.assert_allclose(engine.outputs(state, data.inputs), expected, rtol=1e-3, atol=1e-4)


def test_integers_refuse_it_by_name() -> None:
    with pytest.raises(EngineError, match="has gate, which the integer engine does not compute"):
        IntegerEngine(plan_with_gates("batch", False))


def test_an_op_that_reads_again_must_say_so() -> None:
    class HastyAdd(NumpyFloatOp[Add]):
        def value(self, *sources: Floats) -> Floats:
            return sources[0] + sources[1]

        def gradients(self, gradient: Floats, *sources: Floats) -> Sequence[Floats]:
            return gradient, gradient

    with pytest.raises(TypeError, match=r"HastyAdd reads .*; let Add.rereads return True"):
        HastyAdd(Add(1, 2, 3), 0, cast(Workspace, None))
