"""Requantisation takes a simpler form only where it gives the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Generator
from numpy.typing import NDArray

from edge.targets.c99.requant import NEAREST, Requant, near, simplified

Array = NDArray[np.int64]
Limits = tuple[int, int, int]


def by_integers(sums: Array, multiplier: int, shift: int, limits: Limits) -> Array:
    """Return bytes as `ek_requant` defines them."""
    rounded = (sums * multiplier + (1 << (shift - 1))) >> shift
    return np.clip(rounded + limits[0], limits[1], limits[2])


def by_float(sums: Array, found: int, multiplier: int, shift: int, limits: Limits) -> Array:
    """Return bytes of sums times a float, rounded once, halves to even, with integers alone."""
    bits = int(np.float32(multiplier).view(np.int32)) + found - NEAREST
    digits, places = bits & 0x7FFFFF | 0x800000, shift + 150 - (bits >> 23)
    product = sums * digits
    floor, rest = product >> places, product & ((1 << places) - 1)
    half = 1 << (places - 1)
    magic_is_odd = limits[0] % 2
    up = (rest > half) | ((rest == half) & ((floor + magic_is_odd) % 2 == 1))
    return np.clip(floor + up + limits[0], limits[1], limits[2])


def random_channel(rng: Generator) -> tuple[Array, int, int, int]:
    """Return weights, bias, multiplier and shift: sums reach most bytes and not much more."""
    weights = rng.integers(-127, 128, rng.integers(1, 12))
    multiplier = int(rng.choice([rng.integers(2**30, 2**31), 2**30, 2**30 + 1, 2**31 - 1]))
    shift = int(rng.integers(33, 44))
    return weights, int(rng.integers(-30000, 30000)), multiplier, shift


def requant(bias: int, multiplier: int, shift: int, limits: Limits) -> Requant:
    arrays = np.array([bias], np.int32), np.array([multiplier], np.int32)
    return Requant(*arrays, np.array([shift], np.uint8), *limits)


def found_for(weights: Array, bias: int, multiplier: int, shift: int, limits: Limits) -> int:
    factors = requant(bias, multiplier, shift, limits)
    return int(near(factors, weights[None].astype(np.int8))[0])


@settings(deadline=None, max_examples=300)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_float_gives_the_bytes_of_the_integers_at_every_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, bias, multiplier, shift = random_channel(rng)
    low, high = sorted(rng.integers(0, 256, 2).tolist())
    limits = (int(rng.integers(0, 256)), low, high)
    found = found_for(weights, bias, multiplier, shift, limits)
    least = bias + 255 * int(np.minimum(weights, 0).sum())
    sums = np.arange(least, bias + 255 * int(np.maximum(weights, 0).sum()) + 1)
    if found:
        actual = by_float(sums, found, multiplier, shift, limits)
        np.testing.assert_array_equal(actual, by_integers(sums, multiplier, shift, limits))


def test_most_channels_of_a_sparse_layer_have_a_float() -> None:
    rng = np.random.default_rng(0)
    channels = [random_channel(rng)[:2] for _ in range(300)]
    multipliers = rng.integers(2**30, 2**31, 300).tolist()
    found = [
        found_for(weights, bias, multiplier, 39, (0, 0, 255))
        for (weights, bias), multiplier in zip(channels, multipliers, strict=True)
    ]
    assert np.count_nonzero(found) > 280


@pytest.mark.parametrize(
    ("bias", "multiplier", "shift"),
    [
        pytest.param(1, 2**30, 33, id="halves, which floats round to even"),
        pytest.param(1 << 24, 2**30 + 1, 50, id="sums that are not floats"),
        pytest.param(0, 2**30 + 1, 60, id="thresholds beyond int64"),
        pytest.param(0, 2**31 - 1, 31, id="results beyond int16"),
    ],
)
def test_a_channel_without_a_float_keeps_its_integers(
    bias: int, multiplier: int, shift: int
) -> None:
    weights = np.full(8, 127)
    assert found_for(weights, bias, multiplier, shift, (0, 0, 255)) == 0


def test_a_float_that_differs_at_one_sum_is_refused() -> None:
    """Of a range of sums that a byte needs to the last, thresholds lie too close for any float."""
    rng = np.random.default_rng(1)
    wide = [rng.integers(-127, 128, 1152) for _ in range(50)]
    multiplier = rng.integers(2**30, 2**31, 50).tolist()
    found = [found_for(w, 0, m, 44, (0, 0, 255)) for w, m in zip(wide, multiplier, strict=True)]
    assert 0 in found


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_channel_without_weights_keeps_its_byte(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bias, multiplier = int(rng.integers(-(2**31), 2**31)), int(rng.integers(2**30, 2**31))
    shift, limits = int(rng.integers(31, 63)), (int(rng.integers(0, 256)), 0, 255)
    simple = simplified(requant(bias, multiplier, shift, limits), np.zeros((1, 9), np.int8))
    factors = int(simple.multiplier[0]), int(simple.shift[0])
    expected = by_integers(np.array([bias]), multiplier, shift, limits)
    np.testing.assert_array_equal(by_integers(simple.bias.astype(int), *factors, limits), expected)
    if factors == (2**30, 31):
        assert near(simple, np.zeros((1, 9), np.int8))[0] == NEAREST


def test_a_channel_with_weights_keeps_its_factors() -> None:
    factors = requant(100, 2**30 + 1, 60, (0, 0, 255))
    assert simplified(factors, np.array([[0, 1]], np.int8)) == factors
