"""The integers of every instruction set are those of numpy, for whole steps of training."""

from __future__ import annotations

import functools
import random
from ctypes import byref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedkit.engine.integer import native_backend
from fedkit.engine.integer.constants import Read
from fedkit.engine.integer.engine import quantize_inputs
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.integer.numpy_backend import NumpyBackend
from fedkit.engine.integer.program import Mode
from fedkit.engine.kernels import int_native as integer_native
from fedkit.engine.kernels import native
from fedkit.engine.ops.copy import Copy
from fedkit.engine.ops.pool import Pool
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.layer_norm import LayerNorm
from fedkit.engine.plan.structure import LayerKind, Plan, StoredTensor
from tests.engine.integer import steps
from tests.engine.integer.extreme import extreme
from tests.engine.integer.steps import Trace, mismatches
from tests.engine.kernels import kernel_sets, programs
from tests.engine.plan.plans import FUNCTIONS, KINDS, LAYERS, PlanCase, random_case, random_data
from tests.naive import integers as naive
from tests.sets import slow_but

BITS = range(2, 9)
WITH_LAYERS = ("layer", "layer", "layer", *LAYERS)
LANES = {"avx512": 32, "avx2": 16, "neon": 8, "plain": 16}


@pytest.fixture(scope="module", params=kernel_sets.names())
def kernels(request: pytest.FixtureRequest, shared_folder: Path) -> native.Kernels:
    if lacking := kernel_sets.missing(request.param):
        pytest.skip(lacking)
    return kernel_sets.load(request.param, shared_folder)


def few(kernels: native.Kernels, count: int) -> int:
    """Return how many cases to try: emulated code is slow."""
    compiled = type(kernels) is native.Kernels and kernels.simd in native.available()
    return count if compiled else count // 3


@functools.cache
def seeded(seed: int, kinds: tuple[str, ...] = KINDS) -> tuple[PlanCase, int, str, Trace]:
    """Return a case with its bits and rule, half of them extreme, and what numpy makes of it."""
    choose = random.Random(seed).choice
    case = random_case(choose, kinds, most=3)
    case = extreme(case, choose) if seed % 2 else case
    bits, rule = choose(BITS), choose(list(RULES))
    return case, bits, rule, steps.train(steps.make(case, None, bits, rule), case, None)


def assert_parity(kernels: native.Kernels, seed: int, kinds: tuple[str, ...] = KINDS) -> None:
    case, bits, rule, expected = seeded(seed, kinds)
    found = steps.train(steps.make(case, kernels, bits, rule), case, kernels)
    assert mismatches(expected, found) == [], f"seed {seed}"


def test_the_lanes_are_those_of_the_registers(kernels: native.Kernels) -> None:
    assert kernels.int_lanes() == LANES[kernels.simd]


def test_steps_of_training_are_numpys(kernels: native.Kernels) -> None:
    for seed in range(few(kernels, 12)):
        assert_parity(kernels, seed)


def test_layer_norms_are_numpys(kernels: native.Kernels) -> None:
    for seed in range(few(kernels, 12)):
        assert_parity(kernels, seed, WITH_LAYERS)


def test_functions_and_gates_are_numpys(kernels: native.Kernels) -> None:
    for seed in range(few(kernels, 12)):
        assert_parity(kernels, seed, FUNCTIONS)


@pytest.mark.slow
def test_more_functions_and_gates_are_numpys(kernels: native.Kernels) -> None:
    for seed in range(1000, 1000 + few(kernels, 1000)):
        assert_parity(kernels, seed, FUNCTIONS)


@pytest.mark.slow
def test_more_layer_norms_are_numpys(kernels: native.Kernels) -> None:
    for seed in range(1000, 1000 + few(kernels, 1000)):
        assert_parity(kernels, seed, WITH_LAYERS)


@pytest.mark.slow
def test_more_steps_of_training_are_numpys(kernels: native.Kernels) -> None:
    for seed in range(1000, 1000 + few(kernels, 2000)):
        assert_parity(kernels, seed)


def test_steps_that_hypothesis_looks_for(kernels: native.Kernels) -> None:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @settings(max_examples=few(kernels, 6), deadline=None, suppress_health_check=slow)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        def choose(options):  # type: ignore[no-untyped-def]
            return data.draw(st.sampled_from(options))

        case, bits, rule = random_case(choose), choose(BITS), choose(list(RULES))
        expected = steps.train(steps.make(case, None, bits, rule), case, None)
        found = steps.train(steps.make(case, kernels, bits, rule), case, kernels)
        assert mismatches(expected, found) == []

    check()


def test_a_difference_of_one_bit_is_found() -> None:
    case, bits, _, expected = seeded(0)
    changed = Trace({name: value.copy() for name, value in expected.arrays.items()})
    changed.arrays["weights 1"][0] ^= 1
    del changed.arrays["loss 0"]
    assert mismatches(expected, changed) == ["loss 0", "weights 1"]
    others = [steps.train(steps.make(case, None, bits, r), case, None) for r in RULES]
    assert any(mismatches(expected, other) for other in others)


# What must change nothing


@pytest.mark.parametrize("kinds", [KINDS, WITH_LAYERS], ids=["", "layers"])
@pytest.mark.parametrize("seed", slow_but(range(0, 4, 2), range(0, 12, 2)))
def test_room_parts_and_earlier_batches_change_nothing(
    kernels: native.Kernels, seed: int, kinds: tuple[str, ...]
) -> None:
    case, bits, rule, expected = seeded(seed, kinds)
    for part_tiles in (1, 16):
        made = steps.make(replace(case, part_tiles=part_tiles), kernels, bits, rule, room=30)
        more = np.concatenate([case.inputs * -3] * 31)[: made.batch]
        inputs, scale = quantize_inputs(more)
        made.forward(inputs, scale, np.arange(len(more)))
        made.loss(np.resize(case.targets, len(more)))
        made.backward()
        assert mismatches(expected, steps.train(made, case, kernels)) == []


@pytest.mark.parametrize("seed", range(0, 24, 2))
def test_a_layer_computes_the_same_whether_it_runs_dense_or_sparse(seed: int) -> None:
    """Pruned weights are listed as zeros in the one, and are not weights in the other."""
    case, bits, rule, _ = seeded(seed)
    found = []
    for dense_above in (2.0, -1.0):
        made = steps.make(replace(case, dense_above=dense_above), None, bits, rule)
        inputs, scale = quantize_inputs(case.inputs)
        made.forward(inputs, scale, np.arange(len(inputs)))
        made.loss(case.targets)
        made.backward()
        gradient = {}
        for name in case.plan.weights:
            part = made.network.part(name, made.gradient)
            kept = made.network.parameters.kept.get(name)
            mask = case.state.masks.get(name)
            gradient[name] = part if kept is not None or mask is None else part[mask.reshape(-1)]
        found.append((made.outputs(), gradient))
    (one, gradients), (other, others) = found
    assert one.tobytes() == other.tobytes()
    for name, value in gradients.items():
        np.testing.assert_array_equal(value, others[name], err_msg=name)


# Other modes


@pytest.mark.parametrize("mode", ["statistics", "evaluate"])
def test_forward_only_is_numpys(kernels: native.Kernels, mode: Mode) -> None:
    for seed in range(few(kernels, 16)):
        case, bits, rule, _ = seeded(seed, KINDS if seed % 4 < 2 else WITH_LAYERS)
        found = []
        for chosen in (None, kernels):
            made = steps.make(case, chosen, bits, rule, mode)
            made.use_running(case.state)
            inputs, scale = quantize_inputs(case.inputs)
            made.forward(inputs, scale, np.arange(len(inputs)))
            trace = Trace({"logits": made.outputs(), "loss": np.array(made.loss(case.targets))})
            for name, value in steps.whats_left(made):
                trace.add(name, value)
            found.append(trace)
        assert mismatches(*found) == [], f"seed {seed}"


# Long sums


@functools.cache
def long_sums(kernel: int, density: float) -> tuple[PlanCase, Trace]:
    """Return a case whose products are as large as can be, of one sign, and numpy's trace of it."""
    side, channels = 84, 3
    plan = Plan(
        weights={"w": (channels, 1, kernel, kernel), "fc": (2, channels)},
        stats={},
        prunable=("w", "fc"),
        tensors=(
            *(StoredTensor((c, side, side)) for c in (1, channels)),
            *(StoredTensor((c, 1, 1)) for c in (channels, 2)),
        ),
        ops=(
            Conv(0, 1, "w", None, (kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1), 1),
            Pool(1, 2, (side, side), (1, 1), (0, 0), "mean"),
            Conv(2, 3, "fc", None, (1, 1), (1, 1), (0, 0), (1, 1), 1),
        ),
        output=3,
    )
    case = random_data(plan, random.Random(0).choice, [density])
    case.state.weights["fc"][:] = [[0.1], [-0.1]]
    masks = {**case.state.masks, "fc": np.ones((2, channels), bool)}
    case = replace(
        case,
        state=replace(case.state, masks=masks),
        inputs=np.full((3, 1, side, side), 127 / 128, np.float32),
        targets=np.zeros(3, np.int64),
        dense_above=0.5,
    )
    return case, steps.train(steps.make(case, None, 8, "per-channel"), case, None, steps=1)


@pytest.mark.parametrize("density", [1.0, 0.4])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_sum_over_pixels_that_leaves_int32(
    kernels: native.Kernels, kernel: int, density: float
) -> None:
    """Registers are emptied in time."""
    case, expected = long_sums(kernel, density)
    found = steps.train(steps.make(case, kernels, 8, "per-channel"), case, kernels, steps=1)
    assert np.abs(expected.arrays["gradient 0"]).max() > 2**32
    assert mismatches(expected, found) == []


@pytest.mark.parametrize("kind", ["layer", "l1-layer"])
def test_an_example_whose_sums_fill_int32(kernels: native.Kernels, kind: LayerKind) -> None:
    """Half of its values are as large as can be, half as small; in the others few differ."""
    side, one, none = 84, (1, 1), (0, 0)
    shape, size = (2, side, side), 2 * side * side
    plan = Plan(
        weights={"w": (2, 1, 1, 1), "scale": shape, "offset": shape, "fc": (2, size)},
        stats={},
        prunable=("w", "fc"),
        tensors=(
            *(StoredTensor(s) for s in ((1, side, side), shape, shape)),
            *(StoredTensor(s) for s in ((size, 1, 1), (2, 1, 1))),
        ),
        ops=(
            Conv(0, 1, "w", None, one, one, none, one, 1),
            LayerNorm(1, 2, "layer", 1e-5, "scale", "offset", kind),
            Copy(2, 3),
            Conv(3, 4, "fc", None, one, one, none, one, 1),
        ),
        output=4,
    )
    case = random_data(plan, random.Random(0).choice, [1.0])
    case.state.weights["w"][:, 0, 0, 0] = (1.0, -1.0)
    inputs = np.zeros((3, 1, side, side), np.float32)
    inputs[0], inputs[1, 0, 0, 0], inputs[2, 0, 0, :2] = 1.0, 1 / 127, (1.0, -1.0)
    case = replace(case, inputs=inputs, targets=np.zeros(3, np.int64), dense_above=0.5)
    one_trace, other = (
        steps.train(steps.make(case, chosen, 8), case, chosen, steps=1)
        for chosen in (None, kernels)
    )
    assert np.abs(one_trace.arrays["gradient 0"]).max() > 2**20
    assert mismatches(one_trace, other) == []


# At the kinks


@pytest.mark.parametrize("shift", [0, 3])
def test_gradients_stop_exactly_at_the_kinks(kernels: native.Kernels, shift: int) -> None:
    """Codes at 0 and at 6 pass none, their neighbours do; `end` is reached by codes -127 to 127."""
    codes = np.arange(-127, 128)
    one, end = np.array([1], np.int32), np.array([90], np.int32)
    how = Read(one, 0 * one, one * shift, 0, 255, 0 * one, end)
    x, g = codes.reshape(1, 1, 1, -1), np.full((1, 1, 1, len(codes)), 5, np.int64)
    expected = naive.masked(g, x, how)
    assert expected.reshape(-1).nonzero()[0].tolist() == list(range(127 + 1, 127 + 90))

    backend = NumpyBackend(steps.make(seeded(0)[0], None, 8).network)
    backend.x[1], backend.g[1] = x, g
    sums, peak = backend.finish(1, how)
    np.testing.assert_array_equal(backend.g[1], expected)

    lanes = int(kernels.int_lanes())
    tile_x, tile_g = (np.repeat(a.reshape(-1, 1), lanes, 1) for a in (x, g))
    tile_x, tile_g = tile_x.astype(np.int8), tile_g.astype(np.int16)
    struct = integer_native.IntTensor(
        x=tile_x.ctypes.data, gradient=tile_g.ctypes.data, examples=1, channels=1, plane=len(codes)
    )
    tile_g[:, 1:] = 0  # lanes beyond the examples never have a gradient
    first, last = native_backend.active_codes(how)
    found_sums, found_peak = np.zeros(5, np.int64), np.zeros(1, np.int32)
    arrays = (programs.address(array) for array in (found_sums, found_peak))
    bounds = (programs.address(first), programs.address(last))
    kernels.int_finish(byref(struct), *bounds, 0, 1, *arrays)
    np.testing.assert_array_equal(tile_g[:, 0], expected.reshape(-1))
    assert found_sums.tolist() == sums[0].tolist() == naive.finish_sums(expected, x)[0]
    assert found_peak.tolist() == peak.tolist() == [5]
