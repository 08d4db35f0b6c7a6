"""The kernels choose the constants that `fedkit.engine.integer` defines, to the last bit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.core.numerics import derive_key
from fedkit.engine.integer import constants as defined
from fedkit.engine.integer import native_backend, program
from fedkit.engine.integer.constants import CODE, WIDE, Carrier, Reals
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.integer.integer_op import LEAST, Slope
from fedkit.engine.plan.structure import Activation
from tests.engine.integer.compiled_constants import Constants
from tests.engine.integer.networks import network_of
from tests.sets import slow_but

ACTIVATIONS: tuple[Activation, ...] = ("none", "relu", "relu6")
CARRIERS: tuple[Carrier, ...] = ("none", "x", "sign")
SEEDS = range(12)


@pytest.fixture(scope="module", params=slow_but(["-O0"], ["-O0", "-O3"]))
def compiled(request: pytest.FixtureRequest) -> Constants:
    return Constants(request.param)


def reals(rng: np.random.Generator, count: int, octaves: int = 40) -> Reals:
    """Return numbers of many sizes and both signs: powers of two, what is near them, 0, tiny."""
    sizes = np.ldexp(rng.uniform(0.5, 1, count), rng.integers(-octaves, octaves, count))
    powers = np.ldexp(1.0, rng.integers(-octaves, octaves, count))
    odd = [0.0, 5e-324, 1e-310, 1e-100, 0.5, 1.0, 32766.5, 32767.0, 32767.5, 32768.0, 1e30]
    kinds = np.stack(
        [sizes, sizes, powers, np.nextafter(powers, 0), rng.choice(odd, count)],
    )
    return kinds[rng.integers(len(kinds), size=count), np.arange(count)] * rng.choice(
        [-1, 1], count
    )


def positive(rng: np.random.Generator, count: int) -> Reals:
    return np.maximum(np.abs(reals(rng, count)), 1e-30)


def assert_same(found: NDArray[np.generic], expected: NDArray[np.generic]) -> None:
    """Compare bits, and types where they are numbers of one kind."""
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_multipliers_and_shifts(compiled: Constants, seed: int) -> None:
    rng = np.random.default_rng(seed)
    factor, most_shift = reals(rng, 200, 80), rng.integers(0, 41, 200).astype(np.int32)
    for most in (WIDE, 2**31 - 1):
        expected = defined.multiplier(factor, most_shift, most)
        for one, other in zip(compiled.multiplier(factor, most_shift, most), expected, strict=True):
            assert_same(one, other)
    bound = np.concatenate([np.abs(factor), np.ldexp(32767.0, range(20)) + 0.5])
    assert_same(compiled.shift_to_fit(bound), defined.shift_to_fit(bound))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_machines_round_apart(compiled: Constants, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = reals(rng, 300, 1000)
    assert_same(compiled.first_bits(values), defined.first_bits(values))
    mean, deviation = reals(rng, 200), np.abs(reals(rng, 200))
    assert_same(compiled.rectified(mean, deviation), program._rectified(mean, deviation))


@pytest.mark.parametrize("count", [*range(40), 127, 128, 129, 136, 137, 1000, 8192, 8193, 20000])
def test_sums_are_of_numpys_order(compiled: Constants, count: int) -> None:
    values = reals(np.random.default_rng(count), count, 20)
    assert compiled.sum(values) == values.sum()


@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
def test_keys(words: list[int]) -> None:
    assert Constants("-O0").key(*words) == derive_key(*words)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_reads(compiled: Constants, seed: int, activation: Activation) -> None:
    rng = np.random.default_rng(seed)
    factor, offset = reals(rng, 100), reals(rng, 100)
    unit = float(positive(rng, 1)[0])
    high = int(rng.choice([1, 3, 15, 127, 255, WIDE]))
    read = defined.read_constants(factor / unit, offset / unit, activation, high, 6.0 / unit)
    a, b, shift, low, most = compiled.read(factor, offset, activation, unit, high)
    for one, other in ((a, read.a), (b, read.b), (shift, read.shift)):
        assert_same(one, other)
    assert (low, most) == (read.low, read.high)
    for one, other in zip(
        compiled.unclipped(read), native_backend.unclipped_codes(read), strict=True
    ):
        assert_same(one, other)


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
@pytest.mark.parametrize("seed", SEEDS)
def test_codes_that_pass_gradients(compiled: Constants, seed: int, activation: Activation) -> None:
    rng = np.random.default_rng(seed)
    factor, offset = reals(rng, 100, 8), reals(rng, 100, 8)
    bound = float(positive(rng, 1)[0])
    unit = bound / WIDE
    read = defined.read_constants(factor / unit, offset / unit, activation, WIDE, 6.0 / unit)
    expected = native_backend.active_codes(read)
    for one, other in zip(
        compiled.active(factor, offset, activation, bound), expected, strict=True
    ):
        assert_same(one, other)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_chains(compiled: Constants, seed: int, carrier: Carrier) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (reals(rng, 100) for _ in range(3))
    if carrier == "none":
        a, b, c = np.ones(100), np.zeros(100), np.zeros(100)
    most = rng.choice([0, 1, 127, 2047, WIDE], 100).astype(np.float64)
    slope, unit = Slope(positive(rng, 100), most), positive(rng, 100)
    reach = np.abs(a) * most + np.abs(b) * defined.CARRIED[carrier] + np.abs(c)
    assert_same(compiled.bound((a, b, c, carrier), slope), slope.unit * reach)
    one_a, one_b, one_c = (part * slope.unit / unit for part in (a, b, c))
    chain = defined.chain_constants(one_a, one_b, one_c, carrier, most, WIDE)
    found = compiled.chain((a, b, c, carrier), slope, unit)
    for one, other in zip(found, (chain.a, chain.b, chain.c, chain.shift), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("seed", SEEDS)
def test_mixes(compiled: Constants, seed: int) -> None:
    rng = np.random.default_rng(seed)
    new, most = positive(rng, 100), rng.choice([0, 1, 300, WIDE], 100).astype(np.float64)
    old = Slope(positive(rng, 100), most)
    unit = np.maximum((old.unit * old.most + new * WIDE) / WIDE, LEAST)
    slope, mix = compiled.give(old, new)
    expected = defined.mix_constants(old.unit / unit, new / unit)
    assert_same(slope.unit, unit)
    assert (slope.most == WIDE).all()
    for one, other in zip(vars(mix).values(), vars(expected).values(), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_scales_of_gradients(compiled: Constants, rule: str, bits: int) -> None:
    for seed in SEEDS:
        ranges = np.abs(reals(np.random.default_rng(seed), 30, 6))
        ranges = np.where((ranges > 1e-90) & (seed > 0), ranges, 0.0)
        factor, unit = compiled.scaled(rule, bits, ranges)
        expected, expected_unit = RULES[rule](ranges, bits)
        assert_same(factor, expected)
        assert unit == expected_unit


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", ["usual", "zeros", "alike", "huge", "tiny", "empty", "nothing"])
def test_codes_of_weights(compiled: Constants, bits: int, kind: str) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        shape = (7, 40, 3, 3)
        mask = rng.random(shape) < (0.6 if seed % 2 else 0.1)
        weight = rng.standard_normal(shape)
        if kind == "alike":
            weight = np.sign(weight)
        weight *= {"zeros": 0.0, "huge": 1e30, "tiny": 1e-30}.get(kind, 1.0)
        mask[[1, 4]] &= kind != "empty"
        mask &= kind != "nothing"
        weight[3] *= kind != "zeros"
        network = network_of(weight.astype(np.float32), mask, bits)
        least = np.abs(reals(rng, 7)) * 1e-3
        expected = network.codes(1, least)
        whole = network.part("middle", network.weights)
        arguments = (network.points["middle"], defined.CLIP[bits], 2 ** (bits - 1) - 1, least)
        found = compiled.codes(whole, network.row_ends(1), *arguments)
        assert_same(found.values, expected.values)
        assert_same(found.scale, expected.scale)
        factor, ends = rng.integers(1, 2048, 7).astype(np.float64), network.row_ends(1)
        sums = network.column_sums(1, np.abs(expected.values), factor)
        place = (network.columns(1), 40, 9 if network.layers[1].dense else 0)
        assert_same(compiled.column_sums(found.values, ends, factor, *place), sums)


def test_a_wrong_constant_is_seen(compiled: Constants) -> None:
    factor = np.array([0.3, 1.0])
    read = defined.read_constants(factor, factor, "relu", 255, 6.0)
    a, *_ = compiled.read(factor * (1 + 2.0**-14), factor, "relu", 1.0, 255)
    with pytest.raises(AssertionError):
        assert_same(a, read.a)
    other = replace(read, low=-CODE)
    assert other != read and math.isfinite(compiled.sum(factor))
