from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.core import numerics
from fedkit.core.errors import QuantizationError
from fedkit.integers.format import Quantized, groups_that_fit, largest_level, over_channels
from fedkit.integers.per_channel import (
    QUANTIZERS,
    gaussian_clip,
    mse_clip,
    quantize_weights,
    shiftquant,
)
from tests.integers.cases import tensors

NAMES = list(QUANTIZERS)
KEY = numerics.derive_key(11)
Tensor = tuple[NDArray[np.float32], int]


def normal(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(4).normal(size=shape).astype(np.float32)


# Gradients: every row of the table


@pytest.mark.parametrize("name", NAMES)
@given(drawn=tensors(), bits=st.integers(2, 8), word=st.integers(0, 9))
def test_each_number_is_rounded_as_defined(name: str, drawn: Tensor, bits: int, word: int) -> None:
    x, axis = drawn
    key = numerics.derive_key(word)
    found = QUANTIZERS[name].quantize(x, bits, axis, key)
    assert found.values.dtype == np.int8 and found.values.shape == x.shape
    scales = np.broadcast_to(over_channels(found.channel_scales, x.ndim, axis % x.ndim), x.shape)
    for counter, index in enumerate(np.ndindex(x.shape)):
        u = int(numerics.random_bits(key, np.array(counter, np.uint32))) / 2**32
        level = math.floor(float(x[index]) / scales[index] + u)
        assert found.values[index] == min(max(level, -largest_level(bits)), largest_level(bits))


@pytest.mark.parametrize("name", NAMES)
@given(drawn=tensors(), bits=st.integers(2, 8))
def test_no_number_is_off_by_more_than_its_scale(name: str, drawn: Tensor, bits: int) -> None:
    x, axis = drawn
    found = QUANTIZERS[name].quantize(x, bits, axis, KEY)
    scales = over_channels(found.channel_scales, x.ndim, axis % x.ndim)
    # The last term is the rounding of `dequantize` to float32.
    assert (np.abs(x - found.dequantize()) <= scales * (1 + 2**-16)).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_declared_unbiased_is(name: str) -> None:
    x, draws = normal(3, 5) * np.array([[1], [0.1], [0.001]], np.float32), 2000
    found = np.array(
        [
            QUANTIZERS[name].quantize(x, 4, 0, numerics.derive_key(6, draw)).dequantize()
            for draw in range(draws)
        ],
        np.float64,
    )
    error = found.std(0) / math.sqrt(draws)
    unbiased = (np.abs(found.mean(0) - x) <= 4 * error + 1e-7 * np.abs(x)).all()
    assert unbiased == QUANTIZERS[name].unbiased


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_what_is_declared_to_fit_int8_does(name: str, bits: int) -> None:
    found = QUANTIZERS[name].quantize(normal(9, 4), bits, 0, KEY)
    fits = isinstance(found, Quantized) and found.fits_int8
    assert fits == QUANTIZERS[name].int8_fit
    if isinstance(found, Quantized):
        assert np.abs(found.aligned()).max() <= 127


@pytest.mark.parametrize("name", NAMES)
def test_a_key_gives_the_same_values_and_another_key_others(name: str) -> None:
    quantize, x = QUANTIZERS[name].quantize, normal(20, 30)
    first = quantize(x, 4, 1, KEY)
    assert np.array_equal(first.values, quantize(np.asfortranarray(x), 4, -1, KEY).values)
    assert not np.array_equal(first.values, quantize(x, 4, 1, KEY + 1).values)


@pytest.mark.parametrize("name", NAMES)
def test_levels_stay_levels_and_the_largest_is_reached(name: str) -> None:
    x = np.array([[-7, -3, 0, 1, 7]], np.float32)
    found = QUANTIZERS[name].quantize(x, 4, 0, KEY)
    assert found.channel_scales.tolist() == [1]
    assert found.values.tolist() == x.tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (2, 3)])
def test_nothing_and_zeros_have_the_scale_1(name: str, shape: tuple[int, int]) -> None:
    found = QUANTIZERS[name].quantize(np.zeros(shape, np.float32), 4, 0, KEY)
    assert not found.values.any() and found.values.shape == shape
    if isinstance(found, Quantized):
        assert found.scale == 1.0 and (found.exponents == found.groups - 1).all()
    else:
        assert found.channel_scales.tolist() == [1.0] * shape[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("x", [2.0**-149, 3.4e38])
def test_the_ends_of_float32(name: str, x: float) -> None:
    found = QUANTIZERS[name].quantize(np.array([[x, -x]], np.float32), 8, 0, KEY)
    assert found.values.tolist() == [[127, -127]]
    assert found.dequantize() == pytest.approx(np.array([[x, -x]]), rel=1e-6, abs=0)


def test_float16_is_taken_as_float32() -> None:
    x = normal(4, 4).astype(np.float16)
    assert np.array_equal(
        shiftquant(x, 4, 0, KEY).values,  # type: ignore[arg-type]
        shiftquant(x.astype(np.float32), 4, 0, KEY).values,
    )


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "NaN": (lambda: shiftquant(normal(2, 2) * np.float32("nan"), 4, 0, 1), "NaN or infinite"),
    "infinity": (lambda: shiftquant(np.array([np.float32("inf")]), 4, 0, 1), "NaN or infinite"),
    "float64": (lambda: shiftquant(np.zeros(3), 4, 0, 1), "are float64"),  # type: ignore[arg-type]
    "integers": (lambda: shiftquant(np.array([1, 2]), 4, 0, 1), "are int64"),
    "no such axis": (lambda: shiftquant(normal(2, 2), 4, 2, 1), r"no axis 2 in shape \(2, 2\)"),
    "one bit": (lambda: shiftquant(normal(2, 2), 1, 0, 1), "bits is 1"),
    "no groups": (lambda: shiftquant(normal(2, 2), 4, 0, 1, groups=0), "groups is 0"),
    "weights of NaN": (lambda: quantize_weights(normal(1) / np.float32(0), 4), "NaN or inf"),
}


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_levels_is_refused(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(QuantizationError, match=message):
        call()


# Clipping


def rounded(x: NDArray[np.float64], clip: float, bits: int) -> NDArray[np.float64]:
    scale, most = clip / largest_level(bits), largest_level(bits)
    return np.clip(np.rint(x / scale), -most, most) * scale


def squared_error(x: NDArray[np.float64], clip: float, bits: int) -> float:
    return float(np.square(x - rounded(x, clip, bits)).mean())


@pytest.mark.parametrize(("bits", "step"), [(2, 1.2240), (3, 0.6508)])
def test_the_gaussian_clip_is_in_maxs_table(bits: int, step: float) -> None:
    """Max (1960), table II: the best even steps for 3 and 7 levels."""
    assert gaussian_clip(bits) / largest_level(bits) == pytest.approx(step, abs=1e-4)


BANNER = {2: 1.71, 3: 2.15, 4: 2.55, 5: 2.93, 6: 3.28, 7: 3.61, 8: 3.92}
"""Clips for 2^bits levels under a model of even noise (Banner et al., 2019, as ACIQ prints)."""


@pytest.mark.parametrize("bits", BANNER)
def test_the_gaussian_clip_is_better_than_anothers_and_near_it_where_levels_are_many(
    bits: int,
) -> None:
    x = np.linspace(-9, 9, 300_001)
    density = np.exp(-np.square(x) / 2)

    def error(clip: float) -> float:
        return float(np.average(np.square(x - rounded(x, clip, bits)), weights=density))

    ours, theirs = gaussian_clip(bits), BANNER[bits]
    assert error(ours) <= min(error(ours * 0.998), error(ours * 1.002), error(theirs) * (1 + 1e-6))
    tolerance = {2: 0.3, 3: 0.1, 4: 0.03}.get(bits, 0.02)
    assert ours == pytest.approx(theirs, rel=tolerance)


@given(st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=8), st.integers(2, 4))
def test_no_clip_of_a_fine_grid_is_better_than_the_exact_one(x: list[float], bits: int) -> None:
    numbers = np.array([x], np.float32)
    (clip,) = mse_clip(numbers, bits, 0)
    row = numbers[0].astype(np.float64)
    if not row.any():
        assert clip == 0
        return
    grid = np.linspace(0.01, 1.5, 150) * np.abs(row).max()
    least = min(squared_error(row, other, bits) for other in grid)
    assert squared_error(row, clip, bits) <= least * (1 + 1e-9) + 1e-12


def test_clips_are_found_per_channel() -> None:
    x = normal(2, 20_000) * np.array([[1], [5]], np.float32)
    found = mse_clip(x.T, 4, 1)
    assert found == pytest.approx(gaussian_clip(4) * np.array([1, 5]), rel=0.03)


@pytest.mark.parametrize("bits", range(2, 7))
def test_normal_weights_are_clipped_almost_as_well_as_can_be(bits: int) -> None:
    w = normal(3, 200, 50) * np.array([[[1]], [[0.01]], [[100]]], np.float32)
    found = quantize_weights(w, bits)
    scales = found.channel_scales * largest_level(bits)
    error = np.square(w - found.dequantize()).sum((1, 2))
    best = [
        squared_error(row, clip, bits) * row.size
        for row, clip in zip(w.astype(np.float64).reshape(3, -1), mse_clip(w, bits, 0), strict=True)
    ]
    assert (scales <= np.abs(w).max((1, 2)) * (1 + 1e-12)).all()
    assert (error < np.array(best) * 1.05).all()


def test_weights_that_end_before_the_clip_use_all_levels() -> None:
    found = quantize_weights(np.array([[1, -1], [0, 0], [5, 5]], np.float32), 8)
    assert found.values.tolist() == [[127, -127], [0, 0], [127, 127]]
    assert found.channel_scales.tolist() == [1 / 127, 1, 5 / 127]


@given(drawn=tensors(), bits=st.integers(2, 8))
def test_weights_within_the_clip_are_rounded_to_the_nearest(drawn: Tensor, bits: int) -> None:
    w, most = drawn[0], largest_level(bits)
    found = quantize_weights(w, bits)
    scales = over_channels(found.channel_scales, w.ndim, 0)
    inside = np.abs(w) <= scales * most
    assert (np.abs(w - found.dequantize()) <= scales * (0.5 + 2**-16))[inside].all()
    assert (found.values == np.sign(w) * most)[~inside].all()


def test_groups_default_to_those_that_fit() -> None:
    assert shiftquant(normal(2, 2), 4, 0, KEY).groups == groups_that_fit(4) == 5
