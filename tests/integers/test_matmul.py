from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from fedkit.core import numerics
from fedkit.core.errors import QuantizationError
from fedkit.integers.format import Quantized
from fedkit.integers.matmul import matmul, output_scale
from fedkit.integers.per_channel import shiftquant
from tests.integers.cases import products
from tests.sets import drawn

Product = tuple[Quantized, NDArray[np.int8]]


def naive(quantized: Quantized, weights: NDArray[np.int8]) -> list[list[int]]:
    """Sum in Python's unlimited integers."""
    return [
        [
            sum(
                (int(q) << quantized.groups - 1 - int(e)) * int(w)
                for q, e, w in zip(row, quantized.exponents, column, strict=True)
            )
            for column in weights.T
        ]
        for row in quantized.values
    ]


@settings(max_examples=drawn(1000), deadline=None)
@given(products())
def test_all_realisations_give_the_same_bits(drawn: Product) -> None:
    quantized, weights = drawn
    expected = naive(quantized, weights)
    found = [matmul(quantized, weights, "product"), matmul(quantized, weights, "weight")]
    if quantized.fits_int8:
        found += [matmul(quantized, weights), matmul(quantized, weights, backend="torch")]
    for product in found:
        assert product.dtype == np.int32 and product.shape == (len(expected), weights.shape[1])
        assert product.tolist() == expected


@pytest.mark.parametrize("strides", [slice(None), slice(None, None, -1)])
def test_torch_equals_numpy_on_a_layer(strides: slice) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(130, 77)) * np.exp2(-random.uniform(0, 6, 77))
    quantized = shiftquant(x.astype(np.float32)[strides], 4, 1, 9)
    weights = random.integers(-127, 128, (50, 77)).astype(np.int8).T
    assert np.array_equal(matmul(quantized, weights), matmul(quantized, weights, backend="torch"))


def test_the_scaled_product_approaches_the_real_one() -> None:
    """The mean over keys is the product: rounding is unbiased and the sum is exact."""
    random = np.random.default_rng(0)
    x = (random.normal(size=(3, 6)) * np.exp2(-np.arange(6))).astype(np.float32)
    weights = random.integers(-127, 128, (6, 4)).astype(np.int8)
    found = []
    for word in range(2000):
        quantized = shiftquant(x, 4, 1, numerics.derive_key(word))
        found.append(matmul(quantized, weights) * output_scale(quantized, 0.5))
    error = np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - x @ (0.5 * weights)) < 4 * error).all()


def operand(groups: int = 5, channels: int = 2, axis: int = 1) -> Quantized:
    values = np.full((3, channels), 7, np.int8)
    exponents = np.zeros(values.shape[axis], np.uint8)
    return Quantized(values, exponents, 1.0, 4, groups, axis)


def ones(*shape: int) -> NDArray[np.int8]:
    return np.ones(shape, np.int8)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "an operand beyond int8": (lambda: matmul(operand(6), ones(2, 1)), "reach 224 .* at most 5"),
    "channels on rows": (lambda: matmul(operand(axis=0), ones(2, 1)), "channels on axis 0"),
    "rows too few": (lambda: matmul(operand(), ones(1, 1)), r"need int8 \[2, k\]"),
    "float weights": (
        lambda: matmul(operand(), np.ones((2, 1))),  # type: ignore[arg-type]
        "weights are float64",
    ),
    "no such realisation": (
        lambda: matmul(operand(), ones(2, 1), "product", "torch"),
        "no realisation 'product' on backend 'torch'; there are operand on numpy, operand on torch",
    ),
    "a sum beyond int32": (
        lambda: matmul(operand(24, channels=37), ones(37, 1), "weight"),
        r"a sum of 37 products up to 58720256 \* 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_exact_is_refused(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(QuantizationError, match=message):
        call()


def test_the_largest_sum_that_is_allowed_is_exact() -> None:
    quantized = operand(24, channels=36)
    expected = [[36 * 7 << 23]] * 3
    assert matmul(quantized, ones(36, 1), "weight").tolist() == expected
    assert matmul(quantized, ones(36, 1), "product").tolist() == expected
