"""What kernels are told lets no sum leave int32, and is as near to what was asked as it says."""

from __future__ import annotations

from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.engine.integer import native_backend
from fedkit.engine.integer.constants import (
    CLIP,
    CODE,
    WIDE,
    Carrier,
    Chain,
    Read,
    chain_constants,
    mix_constants,
    multiplier,
    read_constants,
    shift_to_fit,
)
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.plan.structure import Activation
from fedkit.integers.per_channel import gaussian_clip
from tests.naive import integers as naive

MOST = 2**31 - 1

sizes = st.one_of(
    st.sampled_from((0.0, 5e-324, 1e-300, 1e-100, 1e-30, 0.5, 1.0, 32767.0, 32768.0, 1e30, 1e100)),
    st.floats(0, 1e30),
    st.builds(lambda e, f: f * 2.0**e, st.integers(-200, 100), st.floats(0.5, 1)),
)
reals = st.builds(lambda size, sign: size * sign, sizes, st.sampled_from((-1, 1)))
usual = st.builds(
    lambda e, f, s: s * f * 2.0**e,
    *(st.integers(-12, 12), st.floats(0.5, 1), st.sampled_from((-1, 1))),
)


def one(value: float) -> NDArray[np.float64]:
    return np.array([value], np.float64)


# Multipliers


@given(reals, st.integers(0, 40))
def test_a_multiplier_fits_int16_and_is_near(factor: float, most_shift: int) -> None:
    m, shift = (int(part[0]) for part in multiplier(one(factor), most_shift))
    assert abs(m) <= WIDE and 0 <= shift <= most_shift
    error = abs(Fraction(m) / 2**shift - Fraction(factor))
    if abs(factor) <= WIDE:
        # Half a step of the smallest shift, or of 15 bits; the largest multiplier is one short.
        assert error <= max(Fraction(1, 2 ** (most_shift + 1)), abs(Fraction(factor)) / 2**15)
    else:
        assert m == np.sign(factor) * WIDE and shift == 0


def test_multipliers_of_powers_of_two_are_exact() -> None:
    for power in range(-20, 15):
        m, shift = multiplier(one(2.0**power), 40)
        assert Fraction(int(m[0]), 2 ** int(shift[0])) == Fraction(2) ** power


# Reads


@given(
    *(reals, reals, st.sampled_from(get_args(Activation))),
    *(st.sampled_from((1, 3, 15, 127, 255, WIDE)), sizes),
)
def test_no_read_leaves_int32(
    factor: float, offset: float, activation: Activation, high: int, six: float
) -> None:
    how = read_constants(one(factor), one(offset), activation, high, six)
    half = 2 ** int(how.shift[0]) // 2
    for x in (-128, -CODE, 0, CODE):
        assert abs(int(how.a[0]) * x + int(how.b[0])) + half <= MOST
        assert how.low <= naive.read_one(x, how, 0) <= how.high <= high
    # What the kernels compare with: the bounds are moved by what rounds.
    assert int(how.start[0]) + half >= -MOST and int(how.end[0]) + half <= MOST
    assert how.low == (-high if activation == "none" else 0)


@given(usual, st.one_of(usual, st.builds(lambda x: 1000 * x, usual)), st.integers(-CODE, CODE))
def test_a_read_is_within_half_a_step_of_the_real_one(factor: float, offset: float, x: int) -> None:
    """However small the factor is beside the offset: a norm's scale may start as 0."""
    how = read_constants(one(factor / 100), one(offset), "none", WIDE, 0.0)
    exact = factor / 100 * x + offset
    expected = np.clip(exact, -WIDE, WIDE)
    # 15 bits of the factor, and as many as the shift leaves of the offset.
    slack = CODE * abs(factor / 100) * 2.0**-15 + CODE * 2.0 ** -int(how.shift[0]) / 2
    assert abs(naive.read_one(x, how, 0) - expected) <= 0.5 + slack + 2.0 ** -int(how.shift[0])


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e-6, 1e-3])
def test_an_offset_survives_a_factor_of_nearly_nothing(factor: float) -> None:
    how = read_constants(one(factor), one(32000.0), "none", WIDE, 0.0)
    assert abs(naive.read_one(CODE, how, 0) - 32000) <= 1


@given(usual, usual, st.integers(-CODE, CODE))
def test_gradients_pass_where_the_value_lies_between_the_kinks(
    factor: float, offset: float, x: int
) -> None:
    high, six = 255, 200.0
    for activation in ("relu", "relu6"):
        how = read_constants(one(factor), one(offset), activation, high, six)
        value = Fraction(int(how.a[0]) * x + int(how.b[0]), 2 ** int(how.shift[0]))
        expected = value > 0 and (activation == "relu" or value < six)
        assert naive.active(x, how, 0) is expected


# Chains


@given(
    *(reals, reals, reals, st.sampled_from(get_args(Carrier))),
    *(st.one_of(st.integers(0, WIDE), st.just(WIDE)), st.sampled_from((1, 7, 127, WIDE))),
    st.booleans(),
)
def test_no_chain_leaves_int32(
    a: float, b: float, c: float, carrier: Carrier, most: int, limit: int, random: bool
) -> None:
    key = 5 if random else None
    how = chain_constants(one(a), one(b), one(c), carrier, one(most), limit, key=key)
    shift = int(how.shift[0])
    carried = {"none": 0, "x": CODE, "sign": 1, "hat": WIDE}[carrier]
    parts = (int(how.a[0]) * most, int(how.b[0]) * carried, int(how.c[0]))
    room = 2**shift - 1 if random else 2**shift // 2
    assert 0 <= shift <= 29
    assert sum(map(abs, parts)) + room <= MOST
    # The kernels multiply before they add.
    assert all(abs(part) <= MOST for part in parts)


@given(
    *(usual, usual, usual, st.sampled_from(get_args(Carrier))),
    *(st.integers(-WIDE, WIDE), st.integers(-CODE, CODE)),
)
@example(0.1, 1.0, 0.1, "hat", WIDE, WIDE)
def test_a_chain_is_within_half_a_step_of_the_real_one(
    a: float, b: float, c: float, carrier: Carrier, g: int, x: int
) -> None:
    # As in a program: units are such that no result is beyond the limit.
    carried = {"none": 0.0, "x": float(CODE), "sign": 1.0, "hat": float(WIDE)}[carrier]
    size = (abs(a) * WIDE + abs(b) * carried + abs(c)) / WIDE
    a, b, c = a / size, b / size, c / size
    how = chain_constants(one(a), one(b), one(c), carrier, one(WIDE), WIDE)
    k = {"none": 0, "x": x, "sign": naive.sign(x), "hat": x}[carrier]
    exact = np.clip(a * g + b * k + c, -WIDE, WIDE)
    # a has at least 14 bits behind the point for numbers of 15.
    slack = (WIDE + abs(k) + 1) * 2.0 ** -(int(how.shift[0]) + 1)
    assert abs(naive.pass_one(g, x, how, 0, 0) - exact) <= 0.5 + slack
    assert int(how.shift[0]) >= 13


# Mixes


@given(
    st.builds(lambda e: 10.0**e, st.floats(-90, 90)),
    st.builds(lambda e: 10.0**e, st.floats(-90, 90)),
    *(st.integers(0, WIDE), st.booleans(), st.booleans()),
)
def test_no_sum_of_gradients_leaves_int32(
    old: float, new: float, most: int, negative: bool, other: bool
) -> None:
    """Units as `Program._give` chooses them; an old gradient of zeros may have any."""
    unit = max((old * most + new * WIDE) / WIDE, 1e-100)
    how = mix_constants(one(old / unit), one(new / unit))
    g, added = (most if negative else -most), (WIDE if other else -WIDE)
    parts = int(how.a[0]) * g, int(how.b[0]) * added
    half = 2 ** int(how.shift[0]) // 2
    assert abs(parts[0]) + abs(parts[1]) + half <= MOST
    exact = (Fraction(old) * g + Fraction(new) * added) / Fraction(unit)
    off = naive.mix_one(g, added, how, 0) - max(Fraction(-WIDE), min(Fraction(WIDE), exact))
    assert abs(off) <= Fraction(5, 2)  # half a step of the result, and of both factors times 32767


# Shifts


near_powers = st.builds(lambda k, d: WIDE * 2**k + d, st.integers(0, 15), st.integers(-3, 3))


@given(st.one_of(st.integers(0, 2**31), near_powers))
def test_a_shift_is_the_least_that_fits(bound: int) -> None:
    shift = int(shift_to_fit(one(bound))[0])
    for rounding in (naive.half_up, naive.half_even):
        assert rounding(bound, shift) <= WIDE
        assert rounding(-bound, shift) >= -WIDE
    assert shift == 0 or naive.half_up(bound, shift - 1) > WIDE


# Rules


@pytest.mark.parametrize("rule", RULES)
@given(
    # Gradients below 1e-100 count as 0, and a weight's scale is at least 2^-29 / 127.
    st.lists(sizes.filter(lambda x: x == 0 or 1e-120 < x < 1e40), min_size=1, max_size=6),
    st.integers(2, 8),
)
def test_codes_of_a_rule_hold_their_ranges_and_fit(
    rule: str, ranges: list[float], bits: int
) -> None:
    most = 2 ** (bits - 1) - 1
    factor, unit = RULES[rule](np.array(ranges), bits)
    assert (factor == np.rint(factor)).all() and (factor >= 1).all() and unit > 0
    assert most * factor.max() <= (2047 if rule == "per-channel" else CODE)
    # The largest of every channel has a code: the format does not limit the range.
    assert (np.array(ranges) <= unit * factor * most * (1 + 1e-12)).all()
    if rule == "shiftquant":
        assert (np.exp2(np.rint(np.log2(factor))) == factor).all()
    if rule == "per-tensor":
        assert (factor == 1).all()


def test_the_clipping_table_is_the_one_that_shiftquant_computes() -> None:
    assert {bits: round(gaussian_clip(bits), 4) for bits in CLIP if bits <= 8} == {
        bits: clip for bits, clip in CLIP.items() if bits <= 8
    }
    assert list(CLIP.values()) == sorted(CLIP.values())


def test_arrays_that_kernels_read_are_contiguous_int32() -> None:
    wide = np.linspace(-3, 3, 14)[::2]
    read = read_constants(wide, wide, "relu6", 255, 9.0)
    chain = chain_constants(wide, wide, wide, "x", np.abs(wide), 7)
    mix = mix_constants(np.abs(wide), np.abs(wide))
    for how in (read, chain, mix):
        arrays = [part for part in vars(how).values() if isinstance(part, np.ndarray)]
        assert len(arrays) >= 3
        for array in arrays:
            assert array.dtype == np.int32 and array.flags.c_contiguous and array.shape == (7,)
    assert isinstance(chain, Chain) and chain.factor.tolist() == [1] * 7


# Runs of codes


whole = st.integers(-(2**15), 2**15)


@given(
    *(st.one_of(st.just(0), whole), st.integers(-(2**29), 2**29), st.integers(0, 20)),
    *(st.integers(1, 255), st.booleans(), st.integers(-(2**30), 2**30), st.integers(0, 2**30)),
)
def test_codes_that_pass_gradients_are_a_run(
    a: int, b: int, shift: int, high: int, signed: bool, start: int, size: int
) -> None:
    """What the kernels are told is what the definition says of every code."""
    slope, offset, by, begin, end = (
        np.array([value], np.int32) for value in (a, b, shift, start, min(start + size, 2**30))
    )
    read = Read(slope, offset, by, -high if signed else 0, high, begin, end)
    (first,), (last,) = native_backend.active_codes(read)
    (first_unclipped,), (last_unclipped,) = native_backend.unclipped_codes(read)
    for code in range(-CODE, CODE + 1):
        assert (first <= code <= last) == naive.active(code, read, 0)
        within = abs(naive.read_one(code, read, 0)) < high
        assert (first_unclipped <= code <= last_unclipped) == within
