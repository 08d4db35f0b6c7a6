from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkit.core.errors import QuantizationError
from fedkit.integers.format import PerChannel, Quantized, exponents, groups_that_fit, largest_level

RANGES = st.floats(0, 2.0**100, width=32) | st.integers(-140, 100).map(lambda e: 2.0**e)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_most_groups_that_fit_int8(bits: int) -> None:
    fits = [groups for groups in range(1, 9) if largest_level(bits) * 2 ** (groups - 1) <= 127]
    assert groups_that_fit(bits) == max(fits)


def naive_exponent(r: float, largest: float, groups: int) -> int:
    e = 0
    while e < groups - 1 and Fraction(r) * 2 ** (e + 1) <= Fraction(largest):
        e += 1
    return e


@given(st.lists(RANGES, max_size=6), st.integers(1, 24))
def test_exponents_are_the_definition(ranges: list[float], groups: int) -> None:
    found = exponents(np.array(ranges), groups)
    assert found.dtype == np.uint8
    assert found.tolist() == [naive_exponent(r, max(ranges), groups) for r in ranges]


def test_exponents_at_and_beside_powers_of_two() -> None:
    quarter = np.float32(0.25)
    below, above = np.nextafter(quarter, np.float32(0)), np.nextafter(quarter, np.float32(1))
    ranges = np.array([1, below, quarter, above, 0], np.float32)
    assert exponents(ranges, 5).tolist() == [0, 2, 2, 1, 4]


def stored(groups: int = 4, **changed: object) -> Quantized:
    values = np.array([[7, -7], [1, 3], [0, -5]], np.int8)
    fields: dict[str, object] = {
        "values": values,
        "exponents": np.array([0, 3, 1], np.uint8),
        "scale": 0.5,
        "bits": 4,
        "groups": groups,
        "axis": 0,
    }
    return Quantized(**{**fields, **changed})  # type: ignore[arg-type]


def test_stored_numbers_mean_values_times_scales() -> None:
    numbers = stored()
    assert numbers.channel_scales.tolist() == [0.5, 0.0625, 0.25]
    assert numbers.dequantize().tolist() == [[3.5, -3.5], [0.0625, 0.1875], [0, -1.25]]
    assert numbers.dequantize().dtype == np.float32
    assert numbers.step == 0.0625
    assert numbers.aligned().tolist() == [[56, -56], [1, 3], [0, -20]]
    assert np.array_equal(numbers.aligned() * numbers.step, numbers.dequantize())
    assert numbers.fits_int8 and not stored(groups=6).fits_int8


def test_values_of_the_last_group_fit_int32() -> None:
    values = np.array([[127, -127]], np.int8)
    widest = Quantized(values, np.zeros(1, np.uint8), 1.0, bits=8, groups=24, axis=0)
    assert widest.aligned().tolist() == [[127 * 2**23, -127 * 2**23]]


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "bits": ({"bits": 9}, "bits is 9"),
    "no groups": ({"groups": 0}, "groups is 0"),
    "many groups": ({"groups": 25}, "groups is 25"),
    "a value beyond its bits": ({"bits": 3}, r"3 bits hold int8 within \+-3"),
    "values of another type": ({"values": np.zeros((3, 2))}, "values are float64"),
    "an exponent beyond its groups": ({"groups": 3}, "uint8 below 3"),
    "an exponent too few": ({"exponents": np.zeros(2, np.uint8)}, "2 scales"),
    "another axis": ({"axis": 1}, "axis 1 of shape"),
    "a scale of 0": ({"scale": 0.0}, "not positive"),
    "an infinite scale": ({"scale": float("inf")}, "not positive and finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_format_is_refused(name: str) -> None:
    changed, message = REFUSED[name]
    with pytest.raises(QuantizationError, match=message):
        stored(**changed)  # type: ignore[arg-type]


def test_scales_per_channel() -> None:
    values, scales = np.array([[1, -2], [3, 0]], np.int8), np.array([0.5, 0.1])
    numbers = PerChannel(values, scales, bits=3, axis=1)
    assert numbers.dequantize().tolist() == [[0.5, np.float32(-0.2)], [1.5, 0]]
    with pytest.raises(QuantizationError, match="3 scales"):
        PerChannel(values, np.ones(3), bits=3, axis=1)
