"""Left matrices over the whole range of float32, against steps that are fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedkit.engine.integer.gemm import Gemm
from fedkit.engine.kernels import native
from fedkit.integers.per_channel import QUANTIZERS
from fedkit.wire.differences import decode_differences, encode_differences

LEAST, NORMAL, MOST = 2.0**-149, 2.0**-126, float(np.finfo(np.float32).max)
ENDS = [0.0, -0.0, 1e-37, -1e-37, LEAST, -LEAST, NORMAL, -NORMAL, 1e-30, 1.0, MOST, -MOST]
PATTERNS = st.integers(0, 2**32 - 1).map(lambda n: np.array(n, np.uint32).view(np.float32).item())
FLOATS = st.one_of(PATTERNS.filter(math.isfinite), st.sampled_from(ENDS))
MATRICES = st.integers(1, 3).flatmap(
    lambda n: st.lists(st.lists(FLOATS, min_size=n, max_size=n), min_size=1, max_size=4)
)
NEARLY = Fraction(1000001, 1000000)
"""What float32 may round."""


def ranges_of(rows: list[list[float]]) -> list[Fraction]:
    return [max(abs(Fraction(value)) for value in column) for column in zip(*rows, strict=True)]


def steps_of(rows: list[list[float]], bits: int) -> list[Fraction]:
    """Return per column R / m, halved as often as the column's largest number allows."""
    most = 2 ** (bits - 1) - 1
    groups = 1 + max(n for n in range(8) if most << n <= 127)
    ranges = ranges_of(rows)
    largest = max(ranges)
    halved = [
        next((n for n in range(groups - 1) if largest < 2 ** (n + 1) * r), groups - 1)
        for r in ranges
    ]
    return [(largest or most) / Fraction(most) / 2**n for n in halved]


@pytest.mark.parametrize("simd", native.available())
@settings(max_examples=50, deadline=None)
@given(rows=MATRICES, bits=st.integers(2, 8), key=st.integers(0, 2**64 - 1))
@example(rows=[[1e-37, -1e-37]], bits=8, key=0)
@example(rows=[[LEAST, -LEAST], [1e-37, 0.0]], bits=4, key=1)
@example(rows=[[MOST, 1.0]], bits=2, key=2)
@example(rows=[[0.0, 0.0]], bits=2, key=2)
def test_any_float_becomes_a_code_next_to_it(
    simd: str, rows: list[list[float]], bits: int, key: int
) -> None:
    left = Gemm(native.load_kernels(simd)).left(np.array(rows, np.float32), bits, key)
    steps, unit = steps_of(rows, bits), Fraction(left.unit)
    for row, codes in zip(rows, left.values.tolist(), strict=False):
        for value, code, step in zip(row, codes, steps, strict=False):
            assert abs(code * unit - Fraction(value)) <= step * NEARLY
            assert code == 0 or (code > 0) == (value > 0)


@pytest.mark.parametrize("name", QUANTIZERS)
@settings(max_examples=50, deadline=None)
@given(rows=MATRICES, bits=st.integers(2, 8), key=st.integers(0, 2**64 - 1))
@example(rows=[[1e-37, -1e-37]], bits=8, key=0)
@example(rows=[[LEAST, MOST]], bits=4, key=0)
def test_any_float_becomes_a_level_next_to_it(
    name: str, rows: list[list[float]], bits: int, key: int
) -> None:
    x, most = np.array(rows, np.float32), 2 ** (bits - 1) - 1
    found = QUANTIZERS[name].quantize(x, bits, 1, key)
    ranges = ranges_of(rows)
    steps = {
        "per-tensor": [(max(ranges) or most) / Fraction(most)] * len(ranges),
        "shiftquant": steps_of(rows, bits),
        "per-channel": [(r or most) / Fraction(most) for r in ranges],
    }[name]
    for row, levels in zip(rows, found.values.tolist(), strict=True):
        for value, level, step in zip(row, levels, steps, strict=True):
            assert abs(level * step - Fraction(value)) <= step * NEARLY
            assert level == 0 or (level > 0) == (value > 0)
    assert not np.isnan(found.dequantize()).any()


@settings(max_examples=50, deadline=None)
@given(row=st.lists(FLOATS, min_size=1, max_size=6), bits=st.integers(2, 8))
@example(row=[1e-37, -1e-37], bits=8)
@example(row=[MOST, LEAST], bits=2)
def test_any_difference_is_off_by_half_a_step_of_the_largest(row: list[float], bits: int) -> None:
    """A step is never less than the least normal number, below which all differences are 0.

    The largest number of float32 may come back infinite, as its step is rounded.
    """
    shapes = {"w": (len(row),)}
    blob = encode_differences(np.array(row, np.float32), shapes, {}, bits)
    step = max(max(map(abs, row)) / (2 ** (bits - 1) - 1), NORMAL)
    for value, found in zip(row, decode_differences(blob, shapes, {}, bits).tolist(), strict=True):
        assert found == 0 or (found > 0) == (value > 0)
        beyond = math.isinf(found) and abs(value) > 0.999 * MOST
        assert beyond or abs(found - value) <= step / 2 * (1 + 1e-6)
