"""What the reconstruction promises of ShiftQuant, measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.core import numerics
from fedkit.integers.format import Quantized, largest_level
from fedkit.integers.per_channel import per_channel, per_tensor, shiftquant
from tests.integers.cases import tensors


def spread_gradient(channels: int, size: int, octaves: float) -> NDArray[np.float32]:
    """Return even numbers [channels, size]; ranges are spread evenly over octaves below 1."""
    random = np.random.default_rng(0)
    ranges = np.exp2(-(np.arange(channels) + 0.5) * octaves / channels)
    ranges[0] = 1
    x = random.uniform(-1, 1, (channels, size))
    x /= np.abs(x).max(axis=1, keepdims=True)
    return (x * ranges[:, None]).astype(np.float32)


def variance(found: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return the unbiased estimate of the variance per channel, summed over its numbers."""
    return np.var(np.array(found, np.float64), axis=0, ddof=1).sum(axis=1)


@given(drawn=tensors(), bits=st.integers(2, 8), groups=st.integers(1, 24))
def test_levels_are_some_of_a_per_tensor_grid(
    drawn: tuple[NDArray[np.float32], int], bits: int, groups: int
) -> None:
    """The uncomfortable equality: on the common grid these are levels of a plain wider tensor."""
    x, axis = drawn
    found = shiftquant(x, bits, axis, 5, groups)
    most = largest_level(bits) << groups - 1
    assert np.abs(found.aligned()).max(initial=0) <= most
    assert np.array_equal((found.aligned() * found.step).astype(np.float32), found.dequantize())
    if np.any(x):
        assert found.step == pytest.approx(float(np.abs(x).max()) / most, rel=1e-15)


@pytest.mark.parametrize(("bits", "groups"), [(2, 7), (4, 5), (4, 2), (6, 3)])
def test_the_variance_stays_below_its_bound(bits: int, groups: int) -> None:
    x = spread_gradient(channels=24, size=400, octaves=8)
    draws: list[Quantized] = [
        shiftquant(x, bits, 0, numerics.derive_key(bits, draw), groups) for draw in range(100)
    ]
    t = np.abs(x).max() * np.exp2(-draws[0].exponents.astype(np.float64))
    bound = x.shape[1] * np.square(t) / (4 * largest_level(bits) ** 2)
    measured = variance([draw.dequantize() for draw in draws])
    assert (measured < bound).all()
    assert measured.sum() > bound.sum() / 4  # and the bound says something


def test_the_price_of_powers_of_two_for_evenly_spread_ranges() -> None:
    """t_c / r_c is 2^f with f even in [0, 1), and E[4^f] = 3 / ln 4 = 2.16."""
    x = spread_gradient(channels=200, size=1000, octaves=10)
    keys = [numerics.derive_key(1, draw) for draw in range(20)]
    shifted = variance([shiftquant(x, 6, 0, key, groups=11).dequantize() for key in keys])
    own = variance([per_channel(x, 6, 0, key).dequantize() for key in keys])
    assert np.mean(shifted / own) == pytest.approx(3 / math.log(4), rel=0.03)


def test_groups_lower_the_variance_and_a_wide_tensor_lowers_it_further() -> None:
    x = spread_gradient(channels=60, size=100, octaves=6)
    keys = [numerics.derive_key(2, draw) for draw in range(30)]
    four, shifted, eight = (
        variance([quantize(x, bits, 0, key).dequantize() for key in keys]).sum()
        for quantize, bits in ((per_tensor, 4), (shiftquant, 4), (per_tensor, 8))
    )
    assert eight < shifted < four
