"""The integers of every instruction set are those of numpy, for whole steps of training."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedkit.engine.integer.engine import quantize_inputs
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.integer.program import Mode
from fedkit.engine.sparse import native
from tests.engine.integer import steps
from tests.engine.integer.steps import Trace, mismatches
from tests.engine.integer.wild import wild
from tests.engine.sparse import kernel_sets
from tests.engine.sparse.plans import Case, random_case

BITS = range(2, 9)
LANES = {"avx512": 32, "avx2": 16, "neon": 8, "plain": 16}


@pytest.fixture(scope="module", params=kernel_sets.names())
def kernels(request: pytest.FixtureRequest) -> native.Kernels:
    if lacking := kernel_sets.missing(request.param):
        pytest.skip(lacking)
    return kernel_sets.load(request.param)


def few(kernels: native.Kernels, count: int) -> int:
    """Return how many cases to try: emulated code is slow."""
    compiled = type(kernels) is native.Kernels and kernels.simd in native.available()
    return count if compiled else count // 5


@functools.cache
def seeded(seed: int) -> tuple[Case, int, str, Trace]:
    """Return a case with its bits and rule, every second one wild, and what numpy makes of it."""
    choose = random.Random(seed).choice
    case = random_case(choose, most=3)
    case = wild(case, choose) if seed % 2 else case
    bits, rule = choose(BITS), choose(list(RULES))
    return case, bits, rule, steps.train(steps.make(case, None, bits, rule), case, None)


def assert_parity(kernels: native.Kernels, seed: int) -> None:
    case, bits, rule, expected = seeded(seed)
    found = steps.train(steps.make(case, kernels, bits, rule), case, kernels)
    assert mismatches(expected, found) == [], f"seed {seed}"


def test_the_lanes_are_those_of_the_registers(kernels: native.Kernels) -> None:
    assert kernels.int_lanes() == LANES[kernels.simd]


def test_steps_of_training_are_numpys(kernels: native.Kernels) -> None:
    for seed in range(few(kernels, 60)):
        assert_parity(kernels, seed)


@pytest.mark.slow
def test_more_steps_of_training_are_numpys(kernels: native.Kernels) -> None:
    for seed in range(1000, 1000 + few(kernels, 2000)):
        assert_parity(kernels, seed)


def test_steps_that_hypothesis_looks_for(kernels: native.Kernels) -> None:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @settings(max_examples=few(kernels, 10), deadline=None, suppress_health_check=slow)
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


@pytest.mark.parametrize("seed", range(0, 12, 2))
def test_room_parts_and_earlier_batches_change_nothing(kernels: native.Kernels, seed: int) -> None:
    case, bits, rule, expected = seeded(seed)
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
    """Pruned weights are listed as zeros in the one, and are no weights in the other."""
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
    for seed in range(few(kernels, 20)):
        case, bits, rule, _ = seeded(seed)
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
