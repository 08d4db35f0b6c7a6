"""The integer contract against Python's unlimited integers and exact fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.core import numerics
from fedkit.core.numerics import FixedPoint

INT64 = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**10), 2**10),
    st.sampled_from([-(2**63), 2**63 - 1, 2**62, -(2**62)]),
)
REALS = st.floats(2.0**-30, 2.0**14) | st.floats(-(2.0**14), -(2.0**-30)) | st.just(0.0)
COUNTERS = np.arange(2**16, dtype=np.uint32)


# Clipping


@given(INT64, st.integers(1, 63))
def test_saturating(x: int, bits: int) -> None:
    signed, unsigned = numerics.saturate(x, bits), numerics.saturate(x, bits, signed=False)
    assert signed == min(max(x, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
    assert unsigned == min(max(x, 0), 2**bits - 1)


@given(INT64, st.integers(2, 63))
def test_saturating_symmetrically_commutes_with_negation(x: int, bits: int) -> None:
    most = 2 ** (bits - 1) - 1
    found = numerics.saturate_symmetric(x, bits)
    assert found == min(max(x, -most), most)
    if x > -(2**63):
        assert numerics.saturate_symmetric(-x, bits) == -found


# Shifts


def half_away(x: Fraction) -> int:
    return (1 if x > 0 else -1) * math.floor(abs(x) + Fraction(1, 2))


ROUNDINGS: dict[str, Callable[[Fraction], int]] = {
    "floor": math.floor,
    "half_up": lambda x: math.floor(x + Fraction(1, 2)),
    "half_away": half_away,
    "half_even": round,
}


def shift_of(mode: str) -> Callable[..., NDArray[np.int64]]:
    found: Callable[..., NDArray[np.int64]] = getattr(numerics, f"shift_right_{mode}")
    return found


@pytest.mark.parametrize("mode", ROUNDINGS)
@given(x=INT64, shift=st.integers(0, 62))
def test_shifts_round_fractions(mode: str, x: int, shift: int) -> None:
    assert shift_of(mode)(x, shift) == ROUNDINGS[mode](Fraction(x, 2**shift))


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_every_half_and_quarter_near_zero(mode: str) -> None:
    x = np.arange(-12, 13)
    for shift in (0, 1, 2):
        expected = [ROUNDINGS[mode](Fraction(int(value), 2**shift)) for value in x]
        assert shift_of(mode)(x, shift).tolist() == expected


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_shifts_broadcast(mode: str) -> None:
    x, shift = np.arange(-6, 6, dtype=np.int8)[:, None], np.array([0, 1, 5], np.uint8)
    found = shift_of(mode)(x, shift)
    assert found.dtype == np.int64
    for row, column in np.ndindex(12, 3):
        assert found[row, column] == shift_of(mode)(x[row, 0], shift[column])


@given(INT64, st.integers(0, 31), st.integers(0, 2**32 - 1))
def test_stochastic_shifts_add_random_bits_and_floor(x: int, shift: int, random: int) -> None:
    found = numerics.shift_right_stochastic(x, shift, np.array(random, np.uint32))
    assert found == (x + random % 2**shift) >> shift


def test_the_mean_of_stochastic_shifts_is_the_quotient() -> None:
    for x, shift in ((1, 1), (-3, 2), (13, 4), (-100001, 12), (2**31 - 1, 31)):
        random = numerics.random_bits(numerics.derive_key(5, shift), COUNTERS)
        found = numerics.shift_right_stochastic(np.full(len(random), x), shift, random)
        part = x / 2**shift % 1
        error = math.sqrt(part * (1 - part) / len(random))
        assert abs(found.mean() - x / 2**shift) < 4 * error


# Fixed point


@given(REALS, st.integers(2, 31))
def test_a_fixed_point_number_is_the_nearest_of_its_length(real: float, bits: int) -> None:
    if abs(real) >= 2**bits - 0.5 or 0 < abs(real) < 2.0 ** (bits - 63):
        return
    fixed = numerics.fixed_point(real, bits)
    assert isinstance(fixed.multiplier, int) and isinstance(fixed.shift, int)
    assert fixed.multiplier == 0 or 2 ** (bits - 1) <= abs(fixed.multiplier) < 2**bits
    found, exact = Fraction(fixed.multiplier, 2**fixed.shift), Fraction(real)
    assert abs(found - exact) <= abs(exact) / 2**bits
    neighbours = [Fraction(fixed.multiplier + step, 2**fixed.shift) for step in (-1, 1)]
    assert abs(found - exact) <= min(abs(neighbour - exact) for neighbour in neighbours)


@given(st.lists(REALS, max_size=5))
def test_arrays_become_fixed_point_one_by_one(reals: list[float]) -> None:
    fixed = numerics.fixed_point(np.array(reals))
    singles = [numerics.fixed_point(real) for real in reals]
    assert np.asarray(fixed.multiplier).tolist() == [single.multiplier for single in singles]
    assert np.asarray(fixed.shift).tolist() == [single.shift for single in singles]


@given(INT64, st.integers(1 - 2**31, 2**31 - 1), st.integers(0, 62))
def test_multiplying_rounds_once_or_refuses(x: int, multiplier: int, shift: int) -> None:
    fixed = FixedPoint(multiplier, shift)
    if abs(x * multiplier) < 2**63:
        expected = math.floor(Fraction(x * multiplier, 2**shift) + Fraction(1, 2))
        assert numerics.multiply_half_up(x, fixed) == expected
    else:
        with pytest.raises(ValueError, match="exceed int64"):
            numerics.multiply_half_up(x, fixed)


def test_multiplying_broadcasts_one_factor_per_channel() -> None:
    x, scales = np.array([[7, -7, 7], [1000, 1001, 0]]), np.array([0.5, 0.25, 1e-9])
    found = numerics.multiply_half_up(x, numerics.fixed_point(scales))
    assert found.tolist() == [[4, -2, 0], [500, 250, 0]]


# Random bits


def naive_random_bits(key: int, counter: int) -> int:
    x = counter ^ (key & (2**32 - 1))
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = (x + (key >> 32)) % 2**32
    x = x * 0x846CA68B % 2**32
    return x ^ (x >> 16)


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**32 - 1)))
def test_random_bits_are_the_definition(key: int, counters: list[int]) -> None:
    found = numerics.random_bits(key, np.array(counters, np.uint32))
    assert found.dtype == np.uint32
    assert found.tolist() == [naive_random_bits(key, counter) for counter in counters]


def test_random_bits_keep_shape_and_their_argument() -> None:
    counters = np.arange(12, dtype=np.uint32).reshape(3, 4)[:, ::2]
    before = counters.copy()
    assert numerics.random_bits(3, counters).shape == (3, 2)
    assert np.array_equal(counters, before)
    assert numerics.random_bits(3, np.array(7, np.uint32)).shape == ()


def test_derived_keys_are_known_and_order_matters() -> None:
    # The first outputs of SplitMix64 with seeds 0 and 1234567, as its authors' code gives them.
    assert numerics.derive_key(0) == 0xE220A8397B1DCDAF
    assert numerics.derive_key(1234567) == 6457827717110365317
    keys = {numerics.derive_key(*words) for words in [(1, 2), (2, 1), (1,), (1, 0), (0, 1), (2,)]}
    assert len(keys) == 6


def test_each_bit_is_set_half_of_the_time() -> None:
    for word in range(4):
        random = numerics.random_bits(numerics.derive_key(1, word), COUNTERS)
        share = [(random >> np.uint32(bit) & 1).mean() for bit in range(32)]
        assert np.abs(np.array(share) - 0.5).max() < 4 * 0.5 / math.sqrt(len(COUNTERS))


def correlation(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> float:
    return float(np.corrcoef(a, b)[0, 1]) * math.sqrt(len(a))


def test_neighbouring_counters_and_keys_do_not_correlate() -> None:
    """In standard errors; for the values, and for the low bytes that small shifts use."""
    for word in range(4):
        here, next_ = (
            numerics.random_bits(numerics.derive_key(2, w), COUNTERS) for w in (word, word + 1)
        )
        for mask in (np.uint32(2**32 - 1), np.uint32(255), np.uint32(1)):
            assert abs(correlation(here[:-1] & mask, here[1:] & mask)) < 4
            assert abs(correlation(here & mask, next_ & mask)) < 4


def test_values_fill_their_range_evenly() -> None:
    random = numerics.random_bits(numerics.derive_key(3), COUNTERS)
    counts = np.bincount(random >> np.uint32(24), minlength=256)
    chi2 = np.square(counts - len(COUNTERS) / 256).sum() / (len(COUNTERS) / 256)
    assert abs(chi2 - 255) < 4 * math.sqrt(2 * 255)


# Refusals

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "floats": (lambda: numerics.shift_right_floor([1.5], 1), "must hold integers"),
    "beyond int64": (lambda: numerics.saturate(np.array([2**63], np.uint64), 8), "below 2\\^63"),
    "a long shift": (lambda: numerics.shift_right_half_up([1], 63), r"shift is 63.* 0 \.\. 62"),
    "a negative shift": (lambda: numerics.shift_right_half_even([1], [2, -1]), "shift is -1"),
    "no bits": (lambda: numerics.saturate([1], 0), "bits is 0"),
    "one symmetric bit": (lambda: numerics.saturate_symmetric([1], 1), "bits is 1"),
    "a long stochastic shift": (
        lambda: numerics.shift_right_stochastic([1], 32, COUNTERS[:1]),
        r"0 \.\. 31",
    ),
    "random bits of another type": (
        lambda: numerics.shift_right_stochastic([1], 3, np.array([1])),
        "random are int64",
    ),
    "counters of another type": (
        lambda: numerics.random_bits(1, np.arange(3)),  # type: ignore[arg-type]
        "counters are int64",
    ),
    "a negative word": (lambda: numerics.derive_key(1, -1), "word -1 of a key"),
    "NaN": (lambda: numerics.fixed_point([1.0, float("nan")]), "NaN or infinite"),
    "infinity": (lambda: numerics.fixed_point(float("inf")), "NaN or infinite"),
    "a large scale": (lambda: numerics.fixed_point([0.5, 32768.0]), "scale 32768 needs"),
    "a small scale": (lambda: numerics.fixed_point(1e-20), "scale 1e-20 needs"),
    "a long multiplier": (lambda: FixedPoint(2**31, 0), "multiplier is 2147483648"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
