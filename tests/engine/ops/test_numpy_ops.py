"""Ops in numpy: a planted one between others, where gradients accumulate and norms are behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch

from fedkit.core.errors import EngineError
from fedkit.core.numerics import shift_right_half_even
from fedkit.engine.integer.constants import WIDE, Chain, Mix, Read
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.numpy_backend import NumpyOp
from fedkit.engine.kernels import native
from fedkit.engine.ops.add import Add
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.ops.registry import FAMILIES
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.plan import verify
from fedkit.engine.plan.structure import Norm, Plan, PlanOp, StoredTensor
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.sparse.float_op import Floats, NumpyFloatOp, Workspace
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples
from tests.engine.integer import steps
from tests.engine.ops.examples import case_of
from tests.engine.sparse.gradients import by_program, by_torch, worst
from tests.naive import plan as naive


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


HIGH, SHIFT = 127, 7


class IntegerGate(IntegerOp[Gate]):
    """Multiplies two reads of 8 bits; a gradient of 15 bits times one is narrowed by 7."""

    def forward(self, units: Units) -> None:
        unit = [units.worth[source].bound / HIGH for source in self.op.sources]
        self._sides = [units.read(*each, HIGH) for each in zip(self.op.sources, unit, strict=True)]
        self._unit = unit
        self.compute.forward(*self._sides)
        units.raw_unit[self.op.target] = np.full(units.channels(self.op.target), unit[0] * unit[1])

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        for contribution in given:
            for side in (0, 1):
                if self.op.sources[side] == contribution.tensor and side not in self._done:
                    self._done.add(side)
                    self._give(units, contribution, side)
                    break
        self._done.clear()

    def _give(self, units: Units, contribution: Contribution, side: int) -> None:
        unit = np.maximum(units.passed_bound(self.op.target), LEAST) / WIDE
        chain = units.chain_in(self.op.target, unit, WIDE)
        worth = unit * self._unit[1 - side] * 2.0**SHIFT
        mix = units.give(contribution, Slope.whole(worth))
        self.compute.backward(side, self._sides[1 - side], chain, mix)

    def __init__(self, op: Gate, number: int, compute: Any) -> None:
        super().__init__(op, number, compute)
        self._done = set[int]()


class NumpyGate(NumpyOp[Gate]):
    def forward(self, one: Read, other: Read) -> None:
        op, backend = self.op, self.backend
        backend.raw[op.target] = backend.read(op.value, one) * backend.read(op.gate, other)

    def backward(self, side: int, read: Read, chain: Chain, mix: Mix | None) -> None:
        op, backend = self.op, self.backend
        product = backend.passed(op.target, chain) * backend.read(op.sources[1 - side], read)
        backend.put(op.sources[side], shift_right_half_even(product, SHIFT), mix)


EXAMPLE = Example(Gate(1, 2, 3), ((2, 3, 4),) * 4)
GATE = Family(Gate, (EXAMPLE,), FloatGate, None)
BOTH = Family(Gate, (EXAMPLE,), FloatGate, IntegerFamily(IntegerGate, NumpyGate))


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


def test_integers_train_it_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast(dict[str, Family], FAMILIES), "gate", BOTH)
    for image in (False, True):
        around = case_of(EXAMPLE)
        plan = plan_with_gates("batch", image)
        state, data = case(plan, 19)
        tried = replace(around, plan=plan, state=state, inputs=data.inputs, targets=data.targets)
        expected = steps.train(steps.make(tried, None, 6), tried, None)
        for simd in native.available():
            kernels = native.load_kernels(simd)
            found = steps.train(steps.make(tried, kernels, 6), tried, kernels)
            assert steps.mismatches(expected, found) == [], simd
    simple = case_of(EXAMPLE)
    data = Examples(simple.inputs, simple.targets)
    exact = SparseEngine(simple.plan).gradients(simple.state, data)
    integer = IntegerEngine(simple.plan, bits=8).gradients(simple.state, data)
    for name, gradient in exact.items():
        one, other = gradient.ravel().astype(np.float64), integer[name].ravel()
        assert one @ other / np.sqrt((one @ one) * (other @ other)) > 0.97, name
        assert one @ other / (one @ one) == pytest.approx(1, abs=0.15), name


def test_an_op_that_reads_again_must_say_so() -> None:
    class HastyAdd(NumpyFloatOp[Add]):
        def value(self, *sources: Floats) -> Floats:
            return sources[0] + sources[1]

        def gradients(self, gradient: Floats, *sources: Floats) -> Sequence[Floats]:
            return gradient, gradient

    with pytest.raises(TypeError, match=r"HastyAdd reads .*; let Add.rereads return True"):
        HastyAdd(Add(1, 2, 3), 0, cast(Workspace, None))
