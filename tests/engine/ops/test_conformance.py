"""What every op of the registry must do, tried on the examples that its family gives.

Nothing here names an op: one that is added is tested.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from fedkit.core.errors import PlanError
from fedkit.engine.base import LocalTraining
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.integer.numpy_on_native import NumpyOnNative
from fedkit.engine.kernels import native
from fedkit.engine.ops.family import Family
from fedkit.engine.ops.registry import FAMILIES
from fedkit.engine.plan.layer_norm import ExampleNorm
from fedkit.engine.plan.plan import load_plan, save_plan, verify
from fedkit.engine.plan.structure import Activation, PlanOp
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.tasks.task import Examples
from tests.engine.integer import steps
from tests.engine.ops.examples import AROUND, EXAMPLES, Around, case_of, plan_of, with_op
from tests.engine.plan.plans import PlanCase
from tests.engine.sparse.gradients import by_program, by_torch, worst
from tests.naive import plan as naive
from tests.sets import slow_but

TOLERANCE = 1e-5
"""Of a gradient, relative to the tensor's largest; one op between two layers magnifies little."""

IN_FLOAT = [n for n, e in EXAMPLES.items() if FAMILIES[e.op.kind].sparse is not None]
IN_INTEGERS = [n for n, e in EXAMPLES.items() if FAMILIES[e.op.kind].integer is not None]

FIRST = 3
"""So many examples of a family stand for all of them in the default set."""


def quick(names: list[str]) -> list[Any]:
    """Return examples as parameters, all but the first of each family slow."""
    return slow_but([name for name in names if int(name.rpartition("-")[2]) < FIRST], names)


everywhere = pytest.mark.parametrize("around", AROUND, ids=lambda a: a.norm or "plain")


def test_every_op_has_a_meaning() -> None:
    assert {family.op for family in FAMILIES.values()} <= set(naive.MEANING)


def data_of(case: PlanCase) -> Examples:
    return Examples(case.inputs, case.targets)


# In float32


@everywhere
@pytest.mark.parametrize("density", slow_but((0.4,), (0.4, 1.0)))
@pytest.mark.parametrize("name", quick(IN_FLOAT))
def test_gradients_are_torchs(name: str, density: float, around: Around) -> None:
    case = case_of(EXAMPLES[name], around, density)
    limit = 5 * TOLERANCE if around.norm else TOLERANCE  # norms magnify rounding
    for simd in native.available():
        for threads in (1, 3):
            engine = SparseEngine(case.plan, simd=simd, threads=threads)
            program = engine.program(case.state, "train", len(case.inputs) + 5)
            loss, found, taken = by_program(program, data_of(case))
            expected_loss, expected = by_torch(
                case.plan, case.state, data_of(case), taken, torch.float64
            )
            assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
            assert worst(found, expected)[0] < limit, (simd, threads)


@everywhere
@pytest.mark.parametrize("name", quick(IN_FLOAT))
def test_outputs_in_evaluation_are_torchs(name: str, around: Around) -> None:
    case = case_of(EXAMPLES[name], around)
    weights, stats = (
        {n: torch.from_numpy(value).double() for n, value in arrays.items()}
        for arrays in (case.state.weights, case.state.stats)
    )
    inputs = torch.from_numpy(case.inputs).double()
    expected = naive.run(case.plan, weights, stats, inputs, training=False).numpy()
    found = SparseEngine(case.plan).outputs(case.state, case.inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", quick(IN_FLOAT))
def test_a_gradient_of_all_weights_exists_between_other_ops(name: str) -> None:
    case = case_of(EXAMPLES[name], density=0.4)
    found = SparseEngine(case.plan).gradients(case.state, data_of(case))
    assert all(np.isfinite(value).all() and value.any() for value in found.values())


# In integers


@everywhere
@pytest.mark.parametrize("bits", slow_but((8,), (8, 4)))
@pytest.mark.parametrize("name", quick(IN_INTEGERS))
def test_the_kernels_compute_the_integers_of_numpy(name: str, bits: int, around: Around) -> None:
    case = case_of(EXAMPLES[name], around, 0.6)
    expected = steps.train(steps.make(case, None, bits), case, None)
    for simd in native.available():
        kernels = native.load_kernels(simd)
        found = steps.train(steps.make(case, kernels, bits), case, kernels)
        assert steps.mismatches(expected, found) == [], simd


@pytest.mark.parametrize("around", slow_but(AROUND[1:2], AROUND), ids=lambda a: a.norm or "plain")
@pytest.mark.parametrize("name", quick(IN_INTEGERS))
def test_an_op_without_a_kernel_computes_the_same_among_those_with_one(
    name: str, around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, kernels = case_of(EXAMPLES[name], around, 0.6), native.load_kernels()
    expected = steps.train(steps.make(case, kernels, 6), case, kernels)
    kind = EXAMPLES[name].op.kind
    integer = FAMILIES[kind].integer
    assert integer is not None
    lacking = replace(FAMILIES[kind], integer=replace(integer, native=None))
    monkeypatch.setitem(cast(dict[str, Family], FAMILIES), kind, lacking)
    made = steps.make(case, kernels, 6, room=30)
    assert any(isinstance(op.compute, NumpyOnNative) for op in made._ops)
    assert steps.mismatches(expected, steps.train(made, case, kernels)) == []


@pytest.mark.parametrize("activation", ["none", "relu6"])
@pytest.mark.parametrize("name", quick(IN_INTEGERS))
def test_integers_stand_for_what_floats_compute(name: str, activation: Activation) -> None:
    """Gradients of 8 bits point where those of float32 do; a wrong unit or sign would not.

    Without norms, behind which gradients nearly cancel. Of the few values that a ReLU leaves some
    lie beyond the 8 deviations that a norm over examples keeps, and have no gradient.
    """
    case = case_of(EXAMPLES[name], Around("", activation))
    if activation != "none" and any(isinstance(op, ExampleNorm) for op in case.plan.ops):
        pytest.skip("a norm that keeps 8 deviations, behind an activation")
    exact = SparseEngine(case.plan).gradients(case.state, data_of(case))
    found = IntegerEngine(case.plan, bits=8).gradients(case.state, data_of(case))
    for layer, gradient in exact.items():
        if not gradient.any():  # a relu6 of what is never positive
            assert not found[layer].any()
            continue
        one, other = gradient.ravel().astype(np.float64), found[layer].ravel().astype(np.float64)
        along = one @ other / math.sqrt(one @ one)
        assert along / math.sqrt(other @ other) > 0.97, layer
        assert along / math.sqrt(one @ one) == pytest.approx(1, abs=0.15), layer


# Memory


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("name", quick(IN_FLOAT))
def test_the_memory_of_a_program_goes_with_it(name: str) -> None:
    """On a device there is no room for two until a garbage collection."""
    case, order = case_of(EXAMPLES[name], AROUND[1]), np.arange(19)
    engine = SparseEngine(case.plan, threads=2)
    program = engine.program(case.state, "train", 19)
    program.forward(case.inputs, order)
    program.loss(case.targets)
    program.backward()
    dropped: list[Callable[[], object]] = [weakref.ref(program), weakref.ref(program._arena)]
    del engine, program
    assert [each() for each in dropped] == [None, None]


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("backend", ["native", "numpy"])
@pytest.mark.parametrize("name", quick(IN_INTEGERS))
def test_the_memory_of_an_integer_program_goes_with_it(name: str, backend: str) -> None:
    case = case_of(EXAMPLES[name], AROUND[1])
    engine = IntegerEngine(case.plan, bits=8, backend=backend)
    engine.train(case.state, data_of(case), LocalTraining(1, 19, 0.01, 0.9, 0.0), 0)
    (program,) = engine._programs.values()
    dropped: list[Callable[[], object]] = [weakref.ref(program), weakref.ref(program._backend)]
    del engine, program
    assert [each() for each in dropped] == [None, None]


# In plans


@pytest.mark.parametrize("name", quick(list(EXAMPLES)))
def test_a_plan_file_holds_the_op(name: str, tmp_path: Path) -> None:
    plan, path = plan_of(EXAMPLES[name], AROUND[1]), tmp_path / "one.plan"
    save_plan(plan, path)
    assert load_plan(path) == plan
    save_plan(load_plan(path), tmp_path / "two.plan")
    assert (tmp_path / "two.plan").read_bytes() == path.read_bytes()


def mutations(value: Any) -> Iterator[Any]:
    """Yield values of the same type, most of them senseless."""
    if isinstance(value, tuple):
        for place, part in enumerate(value):
            for other in mutations(part):
                yield (*value[:place], other, *value[place + 1 :])
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, float):
        yield from (0.0, -1.0, math.nan, math.inf, 2.0)
    elif isinstance(value, int):
        yield from (-1, 0, value - 1, value + 1, 99)
    elif isinstance(value, str):
        yield from ("", "nobody")


def mutated(op: PlanOp) -> Iterator[PlanOp]:
    for each in fields(op):  # type: ignore[arg-type]
        if each.name not in ("kind", "operation"):
            for value in mutations(getattr(op, each.name)):
                yield replace(op, **{each.name: value})  # type: ignore[type-var]


@pytest.mark.parametrize("name", quick(list(EXAMPLES)))
def test_a_changed_field_is_refused_or_means_what_it_says(name: str) -> None:
    case, refused = case_of(EXAMPLES[name]), 0
    number = case.plan.ops.index(EXAMPLES[name].op)
    for op in mutated(EXAMPLES[name].op):
        plan = with_op(case.plan, op, number)
        try:
            verify(plan)
        except PlanError:
            refused += 1
            continue
        if FAMILIES[op.kind].sparse is not None:
            weights = {n: torch.from_numpy(w).double() for n, w in case.state.weights.items()}
            inputs = torch.from_numpy(case.inputs).double()
            expected = naive.run(plan, weights, {}, inputs, training=False).numpy()
            found = SparseEngine(plan).outputs(case.state, case.inputs)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=repr(op))
    assert refused >= 5 * len(EXAMPLES[name].op.sources)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("name", quick(list(EXAMPLES)))
def test_another_shape_of_the_target_is_refused(name: str, axis: int) -> None:
    plan, op = plan_of(EXAMPLES[name]), EXAMPLES[name].op
    tensors, shape = list(plan.tensors), list(plan.tensors[op.target].shape)
    shape[axis] += 1
    channels, height, width = shape
    tensors[op.target] = replace(tensors[op.target], shape=(channels, height, width))
    changed = replace(plan, tensors=tuple(tensors))
    place = rf"op {plan.ops.index(op)} \({op.kind}\)|tensor {op.target} "
    with pytest.raises(PlanError, match=place):
        verify(changed)
