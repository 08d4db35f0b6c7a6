"""Every kernel of every instruction set against references in float64."""

from __future__ import annotations

import random
from ctypes import byref, c_float, c_int64
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.engine.kernels import native
from fedkit.engine.ops.conv import FloatConv
from fedkit.engine.ops.copy import Copy
from fedkit.engine.ops.pool import Pool
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.execution import place
from fedkit.engine.plan.layer_norm import LayerNorm
from fedkit.engine.plan.structure import LayerKind, Norm, Plan, StoredTensor
from fedkit.engine.sparse.float_op import Mode
from fedkit.engine.sparse.program import SparseProgram
from fedkit.nn.zoo import build_model, seeded
from fedkit.sparse.state import ModelState, apply_masks
from tests.captured import captured
from tests.engine.kernels import kernel_sets, programs
from tests.engine.kernels.programs import Array, StepResult
from tests.engine.plan.plans import DENSITIES, KINDS, LAYERS, PlanCase, random_case, random_data
from tests.naive import kernels as naive
from tests.naive import plan as naive_plan
from tests.sets import slow_but

TOLERANCE = 1e-5
"""Of the largest magnitude of the tensor compared."""

SMALL = 0.05
"""A tensor smaller than this share of what its sums are made of is compared on that share's scale:
sums that cancel to nearly 0, as the gradient of a bias before a norm, only round."""

NEAREST_KINK = 5e-5
WORST_CONDITION = 40.0


@pytest.fixture(scope="module", params=kernel_sets.names())
def kernels(request: pytest.FixtureRequest, shared_folder: Path) -> native.Kernels:
    if lacking := kernel_sets.missing(request.param):
        pytest.skip(lacking)
    return kernel_sets.load(request.param, shared_folder)


def few(kernels: native.Kernels, count: int) -> int:
    """Return how many examples to try: emulated code is slow."""
    return count if type(kernels) is native.Kernels else max(1, count // 4)


def trying(count: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, suppress_health_check=slow)


@st.composite
def cases(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS, most: int = 3) -> PlanCase:
    """Draw a case whose gradients are smooth where it is, and not badly conditioned."""
    case = random_case(lambda options: draw(st.sampled_from(options)), kinds, most)
    assume(smooth(expected_of(case)))
    return case


def seeded_case(
    seed: int,
    kinds: tuple[str, ...] = KINDS,
    most: int = 3,
    densities: tuple[float, ...] = DENSITIES,
) -> PlanCase:
    """Return the first such case of a seeded generator.

    It draws evenly; hypothesis prefers layers without groups, norms and activations.
    """
    choose = random.Random(seed).choice
    found = random_case(choose, kinds, most, densities)
    while not smooth(expected_of(found)):
        found = random_case(choose, kinds, most, densities)
    return found


_LAST: list[tuple[PlanCase, naive.BatchResult]] = []
"""The case of the last reference and what it gave: anyone who draws a case looks at that first."""


def expected_of(case: PlanCase) -> naive.BatchResult:
    if not _LAST or _LAST[0][0] is not case:
        found = naive.run(case.plan, case.state.weights, case.inputs, case.targets)
        _LAST[:] = [(case, found)]
    return _LAST[0][1]


def smooth(run: naive.BatchResult) -> bool:
    nearest = min((float(kink.min()) for kink in run.kinks if kink.size), default=1.0)
    return nearest > NEAREST_KINK and run.condition < WORST_CONDITION


def assert_close(name: str, found: Array, expected: Array, scale: float) -> None:
    assert found.shape == expected.shape, name
    off = float(np.abs(found - expected).max(initial=0.0))
    largest = max(float(np.abs(expected).max(initial=0.0)), SMALL * scale)
    assert off <= TOLERANCE * largest, f"{name}: off by {off:.3g}, largest is {largest:.3g}"


def largest_of(arrays: list[Array]) -> float:
    return max(float(np.abs(array).max(initial=0.0)) for array in arrays)


def assert_step_close(
    case: PlanCase, made: SparseProgram, found: StepResult, expected: naive.BatchResult
) -> None:
    # A norm magnifies the rounding of what it reads, also for all that is computed from it.
    scale = expected.condition * largest_of(expected.raw)
    for tensor, value in enumerate(expected.raw):
        assert_close(f"tensor {tensor}", found.raw[tensor], value, scale)
    assert found.loss == pytest.approx(expected.loss, rel=TOLERANCE)
    # What a norm lets through of a gradient may be far smaller than what it cancels.
    scale = expected.condition * largest_of(expected.finished[1:])
    for tensor, value in found.finished.items():
        assert_close(f"gradient of tensor {tensor}", value, expected.finished[tensor], scale)
    sizes = {n: max(scale, size * expected.condition) for n, size in expected.sizes.items()}
    for name, value in found.gradients.items():
        gradient = expected.gradients[name].reshape(-1).copy()
        kept = made.network.parameters.kept.get(name)
        if kept is not None:
            gradient = gradient[kept]
        elif name in case.state.masks:
            gradient *= case.state.masks[name].reshape(-1)
        assert_close(f"gradient of {name}", value, gradient, sizes[name])
    for name, value in found.full.items():
        gradient = expected.gradients[name].reshape(value.shape)
        assert_close(f"full gradient of {name}", value, gradient, sizes[name])


def assert_equal_bits(one: StepResult, other: StepResult) -> None:
    for (name, value), (_, second) in zip(one.arrays(), other.arrays(), strict=True):
        np.testing.assert_array_equal(value, second, err_msg=name)


# One step against the reference


def check_step(case: PlanCase, kernels: native.Kernels) -> None:
    made = programs.make(case, kernels)
    found = programs.step(made, case.inputs, case.targets)
    assert_step_close(case, made, found, expected_of(case))
    assert programs.guards_hold(made)


@pytest.mark.parametrize("kind", KINDS)
def test_one_op_of_a_kind(kernels: native.Kernels, kind: str) -> None:
    # A convolution gives the op a source with a gradient, and often with a norm.
    check_many(kernels, 6 if kind in ("conv", "fan") else 3, cases(kinds=("conv", kind), most=2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_op_of_a_kind_in_many_ways(kernels: native.Kernels, kind: str) -> None:
    check_many(kernels, 100, cases(kinds=("conv", kind), most=2))


def test_random_plans(kernels: native.Kernels) -> None:
    check_many(kernels, 8, cases(most=5))


@pytest.mark.slow
def test_many_random_plans(kernels: native.Kernels) -> None:
    check_many(kernels, 100, cases(most=5))


def check_many(kernels: native.Kernels, count: int, drawn: st.SearchStrategy[PlanCase]) -> None:
    @trying(few(kernels, count))
    @given(drawn)
    def check(case: PlanCase) -> None:
        check_step(case, kernels)

    check()


@pytest.mark.parametrize("seed", slow_but(range(2), range(12)))
def test_a_tensor_that_two_ops_read(kernels: native.Kernels, seed: int) -> None:
    check_step(seeded_case(seed, kinds=("fan",), most=1), kernels)


@pytest.mark.parametrize("seed", slow_but(range(2), range(12)))
def test_layers_that_run_dense(kernels: native.Kernels, seed: int) -> None:
    case = seeded_case(seed, kinds=("chain",), most=1, densities=(0.8, 1.0))
    check_step(replace(case, dense_above=-1.0), kernels)


@pytest.mark.parametrize("seed", slow_but(range(2), range(12)))
def test_layers_that_run_sparse(kernels: native.Kernels, seed: int) -> None:
    case = seeded_case(seed, kinds=("chain",), most=1, densities=(0.1, 0.5))
    check_step(replace(case, dense_above=2.0), kernels)


@pytest.mark.parametrize("seed", slow_but(range(2), range(12)))
def test_layer_norms(kernels: native.Kernels, seed: int) -> None:
    case = seeded_case(seed, kinds=("layer", *LAYERS), most=5)
    while not any(isinstance(op, LayerNorm) for op in case.plan.ops):
        seed += 100
        case = seeded_case(seed, kinds=("layer", *LAYERS), most=5)
    check_step(case, kernels)
    one = programs.step(programs.make(case, kernels), case.inputs, case.targets)
    other = programs.make(case, kernels, threads=3)
    assert_equal_bits(one, programs.step(other, case.inputs, case.targets))


def normalising(kind: LayerKind, eps: float = 1e-5) -> Plan:
    """Return a plan of a convolution and a layer norm over what it writes."""
    one, none, shape = (1, 1), (0, 0), (2, 3, 3)
    return Plan(
        weights={"conv": (2, 1, 1, 1), "scale": shape, "offset": shape, "fc": (3, 18)},
        stats={},
        prunable=("conv", "fc"),
        tensors=(*map(StoredTensor, ((1, 3, 3), shape, shape, (18, 1, 1), (3, 1, 1))),),
        ops=(
            Conv(0, 1, "conv", None, one, one, none, one, groups=1),
            LayerNorm(1, 2, "layer", eps, "scale", "offset", kind),
            Copy(2, 3),
            Conv(3, 4, "fc", None, one, one, none, one, groups=1),
        ),
        output=4,
    )


@pytest.mark.parametrize("kind", ["layer", "l1-layer"])
def test_equal_values_are_normalised_to_the_offset(
    kernels: native.Kernels, kind: LayerKind
) -> None:
    """Whatever they are, to the last bit: their deviation is 0, not what rounding leaves."""
    case = random_data(normalising(kind), lambda options: options[0], [1.0])
    case.state.weights["conv"][:] = 0.3
    inputs = np.repeat(np.array([0, 1 / 3, 1e4], np.float32), 9).reshape(3, 1, 3, 3)
    case = replace(case, inputs=inputs, targets=np.zeros(3, np.int64))
    made = programs.make(case, kernels)
    found = programs.step(made, case.inputs, case.targets)
    np.testing.assert_array_equal(found.raw[2], np.stack([case.state.weights["offset"]] * 3))
    assert not found.gradients["scale"].any()
    expected = expected_of(case)
    assert_close("offset", found.gradients["offset"], expected.gradients["offset"].ravel(), 0.0)
    assert_close("source", found.finished[1], expected.finished[1], 0.0)


def test_a_weight_that_only_meets_padding(kernels: native.Kernels) -> None:
    """Its input has no gradient to give, but it is read."""
    one, none = (1, 1), (0, 0)
    plan = Plan(
        weights={"conv": (1, 1, 3, 1), "fc": (2, 1)},
        stats={},
        prunable=("conv", "fc"),
        tensors=tuple(map(StoredTensor, ((1, 1, 1), (1, 1, 1), (2, 1, 1)))),
        ops=(
            Conv(0, 1, "conv", None, (3, 1), (2, 1), (1, 0), one, groups=1),
            Conv(1, 2, "fc", None, one, one, none, one, groups=1),
        ),
        output=2,
    )
    case = random_data(plan, lambda options: options[0], [1.0])
    masks = {**case.state.masks, "conv": np.reshape([False, False, True], (1, 1, 3, 1))}
    check_step(replace(case, state=case.state.with_masks(masks), dense_above=2.0), kernels)


def test_a_maximum_that_occurs_twice_passes_its_gradient_once(kernels: native.Kernels) -> None:
    one, none = (1, 1), (0, 0)
    plan = Plan(
        weights={"conv": (2, 1, 1, 1), "fc": (3, 24)},
        stats={},
        prunable=("conv", "fc"),
        tensors=tuple(map(StoredTensor, ((2, 5, 7), (2, 5, 7), (2, 3, 4), (24, 1, 1), (3, 1, 1)))),
        ops=(
            Conv(0, 1, "conv", None, one, one, none, one, groups=2),
            Pool(1, 2, (3, 3), (2, 2), (1, 1), "max"),
            Copy(2, 3),
            Conv(3, 4, "fc", None, one, one, none, one, groups=1),
        ),
        output=4,
    )
    case = random_data(plan, lambda options: options[0], [1.0])
    case.state.weights["conv"][:] = np.reshape([1, -1], (2, 1, 1, 1))
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 3, (19, 2, 5, 7)).astype(np.float32)
    check_step(replace(case, inputs=inputs, targets=rng.integers(0, 3, 19)), kernels)


# Other modes


@pytest.mark.parametrize("mode", ["statistics", "evaluate"])
def test_forward_only(kernels: native.Kernels, mode: Mode) -> None:
    for seed in range(few(kernels, 8)):
        case = seeded_case(seed, most=4)
        stats = case.state.stats if mode == "evaluate" else None
        expected = naive.run(case.plan, case.state.weights, case.inputs, case.targets, stats)
        made = programs.make(case, kernels, mode)
        for norm in made.network.norms.values():
            if mode == "evaluate":
                norm.use_running(case.state)
        made.forward(case.inputs, np.arange(len(case.inputs)))
        found = programs.forward_values(made)
        scale = largest_of(expected.raw)
        for tensor, value in enumerate(expected.raw):
            assert_close(f"tensor {tensor}", found.raw[tensor], value, scale)
        # Where memory is shared, and ops write over what they read.
        dense = programs.make(case, kernels, mode, placing=place)
        for norm in dense.network.norms.values():
            if mode == "evaluate":
                norm.use_running(case.state)
        dense.forward(case.inputs, np.arange(len(case.inputs)))
        np.testing.assert_array_equal(dense.outputs(), made.outputs())
        assert made.loss(case.targets) == pytest.approx(expected.loss, rel=TOLERANCE)
        if mode == "statistics":
            assert_batch_statistics(case, made, expected)
        assert programs.guards_hold(made)


def assert_batch_statistics(
    case: PlanCase, made: SparseProgram, expected: naive.BatchResult
) -> None:
    for index, norm in made.network.norms.items():
        x = expected.raw[index]
        spread = norm.variance(len(x) * x[0, 0].size, unbiased=False)
        mean = x.mean((0, 2, 3))
        variance = x.var((0, 2, 3))
        if norm.norm.kind == "l1-batch":
            variance = naive.l1_variance(x)
        assert_close("mean", norm.center, mean, float(np.abs(x).max()) / SMALL)
        assert_close("variance", spread, variance, float(np.square(x).max()) / SMALL)


@pytest.mark.parametrize("kind", ["batch", "l1-batch"])
def test_the_variance_of_large_values_is_exact(
    kernels: native.Kernels, kind: Literal["batch", "l1-batch"]
) -> None:
    """Sums of squares around 0 would cancel; by a convolution and by an op that sums later."""
    one, none, plane = (1, 1), (0, 0), (5, 7)
    norms = [Norm(name, kind, 1e-5, None, None) for name in ("conv", "copy")]
    plan = Plan(
        weights={"w": (2, 1, 1, 1), "fc": (3, 2)},
        stats={name: (2,) for norm in norms for name in norm.stats},
        prunable=("w", "fc"),
        tensors=(
            StoredTensor((2, *plane)),
            *(StoredTensor((2, *plane), norm) for norm in norms),
            StoredTensor((2, 1, 1)),
            StoredTensor((3, 1, 1)),
        ),
        ops=(
            Conv(0, 1, "w", None, one, one, none, one, groups=2),
            Copy(0, 2),
            Pool(1, 3, plane, one, none, "mean"),
            Conv(3, 4, "fc", None, one, one, none, one, groups=1),
        ),
        output=4,
    )
    rng = np.random.default_rng(0)
    inputs = (1000 + rng.standard_normal((19, 2, *plane))).astype(np.float32)
    case = random_data(plan, lambda options: options[0], [1.0])
    case.state.weights["w"][:] = 1
    case = replace(case, inputs=inputs, targets=np.zeros(19, np.int64))
    made = programs.make(case, kernels, "statistics")
    made.forward(inputs, np.arange(19))
    x = inputs.astype(np.float64)
    variance = x.var((0, 2, 3)) if kind == "batch" else naive.l1_variance(x)
    for norm in made.network.norms.values():
        np.testing.assert_allclose(norm.center, x.mean((0, 2, 3)), rtol=1e-7)
        found = norm.variance(x[:, 0].size, unbiased=False)
        np.testing.assert_allclose(found, variance, rtol=1e-4)


# Data, loss and optimiser


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 35])
def test_examples_are_loaded_in_order_and_read_back(kernels: native.Kernels, count: int) -> None:
    rng = np.random.default_rng(count)
    inputs = rng.standard_normal((40, 3, 2, 5)).astype(np.float32)
    order = rng.permutation(40)[:count]
    width = kernels.lanes
    tiles = np.full((-(-count // width), 3, 2, 5, width), np.nan, np.float32)
    pointers = (programs.address(array) for array in (inputs, order))
    kernels.load_examples(*pointers, c_int64(count), c_int64(30), programs.address(tiles))
    expected = np.empty((tiles.shape[0] * width, 3, 2, 5), np.float32)
    expected[:count] = inputs[order]
    left = order[(count - 1) // width * width :]
    expected[count:] = np.resize(inputs[left], (width, 3, 2, 5))[len(left) :]  # nobody reads them
    loaded = np.moveaxis(tiles, -1, 1).reshape(expected.shape)
    np.testing.assert_array_equal(loaded, expected)

    scale, shift = rng.standard_normal((2, 3)).astype(np.float32)
    struct = native.CTensor(
        x=tiles.ctypes.data,
        scale=scale.ctypes.data,
        shift=shift.ctypes.data,
        examples=count,
        channels=3,
        plane=10,
        activation=2,
    )
    rows = np.full((count + 1, 30), np.nan, np.float32)
    kernels.read_examples(byref(struct), programs.address(rows))
    read = np.clip(inputs[order] * scale[:, None, None] + shift[:, None, None], 0, 6)
    np.testing.assert_allclose(rows[:count].reshape(read.shape), read, rtol=1e-6, atol=1e-6)
    assert np.isnan(rows[count]).all()


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("count", [1, 5, 19])
def test_cross_entropy(kernels: native.Kernels, size: float, count: int) -> None:
    rng = np.random.default_rng(count)
    width, classes = kernels.lanes, 7
    logits = (rng.standard_normal((count, classes)) * size).astype(np.float32)
    targets = rng.integers(0, classes, count)
    tiles = np.full((-(-count // width) * width, classes), np.float32(3e38))
    tiles[:count] = logits
    x = np.ascontiguousarray(np.moveaxis(tiles.reshape(-1, width, classes), 1, 2))
    gradient = np.full_like(x, np.nan)
    struct = native.CTensor(
        x=x.ctypes.data,
        gradient=gradient.ctypes.data,
        examples=count,
        channels=classes,
        plane=1,
    )
    loss, expected = naive.cross_entropy(logits, targets)
    found = kernels.cross_entropy(byref(struct), programs.address(targets))
    assert found == pytest.approx(loss, rel=1e-9)
    by_example = np.moveaxis(gradient, 2, 1).reshape(-1, classes)
    np.testing.assert_allclose(by_example[:count], expected, rtol=1e-6, atol=1e-7 / count)
    assert (by_example[count:] == 0).all()


def test_sgd(kernels: native.Kernels) -> None:
    rng = np.random.default_rng(0)
    weight, velocity = rng.standard_normal((2, 37)).astype(np.float32)
    expected = (weight.astype(np.float64), velocity.astype(np.float64))
    beyond = weight[-1], velocity[-1]
    for _ in range(3):
        gradient = rng.standard_normal(37).astype(np.float32)
        arrays = (programs.address(array) for array in (weight, velocity, gradient))
        kernels.sgd(*arrays, c_int64(36), c_float(0.1), c_float(0.9), c_float(0.01))
        expected = naive.sgd(*expected, gradient, rate=0.1, momentum=0.9, decay=0.01)
    for found, wanted in zip((weight, velocity), expected, strict=True):
        np.testing.assert_allclose(found[:36], wanted[:36], rtol=1e-5, atol=1e-6)
    assert (weight[-1], velocity[-1]) == beyond


def test_a_step_of_a_program_moves_kept_weights_only(kernels: native.Kernels) -> None:
    case = seeded_case(5, most=4)
    made = programs.make(case, kernels)
    programs.step(made, case.inputs, case.targets)
    made.velocity[:] = 0
    made.step(0.1, 0.9, 0.01)
    gradients = expected_of(case).gradients
    for name, weight in made.network.parameters.weights().items():
        before, mask = case.state.weights[name], case.state.masks.get(name)
        moved = before - 0.1 * (gradients[name].reshape(before.shape) + 0.01 * before)
        expected = moved if mask is None else np.where(mask, moved, 0)
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-5)
        assert mask is None or (weight[~mask] == 0).all()


# Sameness


@pytest.mark.parametrize("seed", range(3))
def test_threads_and_runs_change_no_bit(kernels: native.Kernels, seed: int) -> None:
    case = replace(seeded_case(seed, most=4), part_tiles=1)
    inputs, targets = np.tile(case.inputs, (5, 1, 1, 1)), np.tile(case.targets, 5)
    case = replace(case, inputs=inputs, targets=targets)
    made = programs.make(case, kernels)
    first = programs.step(made, inputs, targets)
    assert_equal_bits(first, programs.step(made, inputs, targets))
    for threads in (2, 3):
        other = programs.make(case, kernels, threads=threads)
        assert_equal_bits(first, programs.step(other, inputs, targets))


@pytest.mark.parametrize("stored_bits", [32, 8, 4])
@pytest.mark.parametrize("seed", slow_but(range(2), range(4)))
def test_where_tensors_lie_and_what_lay_there_changes_no_bit(
    kernels: native.Kernels, seed: int, stored_bits: int
) -> None:
    case = seeded_case(seed, most=5)
    by_itself = programs.make(case, kernels, stored_bits=stored_bits)
    apart = programs.step(by_itself, case.inputs, case.targets)
    most = len(case.inputs) + 30
    packed = programs.make(case, kernels, batch=most, placing=place, stored_bits=stored_bits)
    for garbage in (0.0, np.nan, 1e30):
        packed._arena[:] = garbage
        packed.restart(0)
        assert_equal_bits(apart, programs.step(packed, case.inputs, case.targets))
    more = np.concatenate([case.inputs] * 2)[: packed.batch]
    programs.step(packed, more, np.concatenate([case.targets] * 2)[: packed.batch])
    packed.restart(0)
    assert_equal_bits(apart, programs.step(packed, case.inputs, case.targets))


@pytest.mark.parametrize("seed", slow_but(range(2), range(4)))
def test_padded_lanes_are_left_out_of_every_gradient(kernels: native.Kernels, seed: int) -> None:
    case = seeded_case(seed, most=5)
    case = replace(case, inputs=case.inputs[:5], targets=case.targets[:5])
    made = programs.make(case, kernels)
    first = programs.step(made, case.inputs, case.targets)
    made.forward(case.inputs, np.arange(len(case.inputs)))
    for tensor in range(len(case.plan.tensors)):
        programs.lanes(made, "x", tensor)[..., len(case.inputs) :] = 1e6
    made.loss(case.targets)
    made.backward()
    for name in case.plan.weights:
        part = made.network.parameters.part(name, made.gradient)
        np.testing.assert_array_equal(part, first.gradients[name], err_msg=name)


# Gradients of all weights


def wide_case(examples: int, groups: int) -> PlanCase:
    """Return a layer with more inputs than are packed at a time; in one group it runs dense."""
    plan = Plan(
        weights={"a": (6, 16 // groups, 3, 2), "fc": (3, 36)},
        stats={},
        prunable=("a", "fc"),
        tensors=(
            StoredTensor((16, 5, 4)),
            StoredTensor((6, 3, 2)),
            StoredTensor((36, 1, 1)),
            StoredTensor((3, 1, 1)),
        ),
        ops=(
            Conv(0, 1, "a", None, (3, 2), (2, 2), (1, 0), (1, 1), groups),
            Copy(1, 2),
            Conv(2, 3, "fc", None, (1, 1), (1, 1), (0, 0), (1, 1), groups=1),
        ),
        output=3,
    )
    case = random_data(plan, random.Random(examples).choice, (1.0,))
    inputs = np.random.default_rng(0).standard_normal((examples, 16, 5, 4)).astype(np.float32)
    targets = np.arange(examples) % 3
    return replace(case, inputs=inputs, targets=targets, dense_above=0.5, part_tiles=1)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_gradient_is_one_sum_over_the_pixels_of_an_example(
    kernels: native.Kernels, groups: int
) -> None:
    """Bit for bit, whichever inputs are packed together and whichever rows are summed together."""
    case = wide_case(1, groups)
    made = programs.make(case, kernels)
    found = programs.step(made, case.inputs, case.targets)
    gradient, inputs = found.finished[1][0], np.pad(case.inputs[0], ((0, 0), (1, 1), (0, 0)))
    summed = [by_pixels(inputs, gradient, groups, fused) for fused in (True, False)]
    whole = found.full["a"].reshape(summed[0].shape)
    assert any(np.array_equal(whole, expected) for expected in summed)
    assert made.network.layers[0].dense == (groups == 1)
    if groups == 1:
        kept = whole * case.state.masks["a"]
        np.testing.assert_array_equal(found.gradients["a"], kept.reshape(-1))


def by_pixels(
    inputs: NDArray[np.float32], gradient: NDArray[np.float32], groups: int, fused: bool
) -> NDArray[np.float32]:
    """Sum in float32, pixel by pixel; fused products are not rounded by themselves."""
    total = np.zeros((6, 16 // groups, 3, 2), np.float32)
    for y, x in np.ndindex(3, 2):
        read = inputs[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 2].reshape(groups, 1, -1, 3, 2)
        given = gradient[:, y, x].reshape(groups, -1, 1, 1, 1)
        # A sum of a product of two float32 and a float32 fits what is wider, but for ties.
        wide = np.longdouble if fused else np.float32
        product = (given.astype(wide) * read.astype(wide)).reshape(total.shape)
        total = (total.astype(wide) + product).astype(np.float32)
    return total


def test_parts_of_a_batch_add_to_a_gradient(kernels: native.Kernels) -> None:
    case = wide_case(2 * kernels.lanes + 3, groups=2)
    made = programs.make(case, kernels)
    expected = programs.step(made, case.inputs, case.targets).full["a"]
    op = made._ops[0]
    assert isinstance(op, FloatConv)
    used = np.ones(16, np.uint8)
    op.struct.used_in = op.struct.used_out = used.ctypes.data
    for rows in ((0, 6), (1, 5), (2, 3)):
        found = np.zeros((rows[1] - rows[0], 48), np.float32)
        for parts in ((0, 1), (1, 3)):
            to = made.scratch_of(0), programs.address(found)
            kernels.conv_full_gradient(byref(op.struct), *rows, *parts, *to)
        np.testing.assert_array_equal(found, expected[slice(*rows)])


# A whole model


def test_resnet8_computes_what_plain_computes(kernels: native.Kernels) -> None:
    case = resnet8_case()
    expected = programs.step(programs.make(case, native.load_kernels("plain")), *data_of(case))
    found = programs.step(programs.make(case, kernels), *data_of(case))
    assert found.loss == pytest.approx(expected.loss, rel=TOLERANCE)
    for kind in ("finished", "gradients", "full"):
        wanted = getattr(expected, kind)
        for name, value in getattr(found, kind).items():
            assert_close(f"{kind} {name}", value, wanted[name], largest_of(list(wanted.values())))
    assert_close("outputs", found.outputs, expected.outputs, 0.0)


def data_of(case: PlanCase) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return case.inputs, case.targets


def resnet8_case() -> PlanCase:
    model = seeded(lambda: build_model("resnet8", (3, 8, 8), 10), 0)
    plan = captured(model, (3, 8, 8))
    rng = np.random.default_rng(0)
    masks = {name: rng.random(plan.weights[name]) < 0.2 for name in plan.prunable}
    masks[plan.prunable[-1]][:] = True
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    stats = {name: np.ones(shape, np.float32) for name, shape in plan.stats.items()}
    return PlanCase(
        plan,
        ModelState(apply_masks(weights, masks), stats, masks),
        rng.standard_normal((11, 3, 8, 8)).astype(np.float32),
        rng.integers(0, 10, 11),
        dense_above=0.5,
        part_tiles=16,
    )


# The references


@pytest.mark.parametrize("seed", range(10))
def test_the_references_have_torchs_gradients(seed: int) -> None:
    case = seeded_case(seed, most=5)
    expected = expected_of(case)
    weights = {
        name: torch.from_numpy(value).double().requires_grad_()
        for name, value in case.state.weights.items()
    }
    stats = {name: torch.from_numpy(value) for name, value in case.state.stats.items()}
    inputs = torch.from_numpy(case.inputs).double()
    logits = naive_plan.run(case.plan, weights, stats, inputs, training=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(case.targets))
    loss.backward()
    assert expected.loss == pytest.approx(loss.item(), rel=1e-12)
    for name, weight in weights.items():
        found = np.zeros(weight.shape) if weight.grad is None else weight.grad.numpy()
        np.testing.assert_allclose(expected.gradients[name], found, rtol=1e-9, atol=1e-12)
