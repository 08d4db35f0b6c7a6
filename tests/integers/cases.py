"""Tensors that hypothesis draws: any bits, groups, axis, strides and ranges of channels."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.integers.format import Quantized, largest_level


@st.composite
def tensors(draw: st.DrawFn) -> tuple[NDArray[np.float32], int]:
    """Draw a float32 tensor whose channels span up to 2^30, some all 0, and the channels' axis."""
    shape = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    octaves = random.integers(-30, 1, shape[axis])
    sizes = np.ldexp(1.0, octaves) * random.choice([0, 1], shape[axis], p=[0.1, 0.9])
    x = np.moveaxis(random.normal(size=shape), axis, -1) * sizes
    x = np.moveaxis(x, -1, axis).astype(np.float32)
    return (x.T[::-1].T if draw(st.booleans()) else x), axis


@st.composite
def products(draw: st.DrawFn) -> tuple[Quantized, NDArray[np.int8]]:
    """Draw an operand [n, c] in any format, and int8 weights [c, k]."""
    n, c, k = (draw(st.integers(0, 6)) for _ in range(3))
    bits, groups = draw(st.integers(2, 8)), draw(st.integers(1, 8))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    most = largest_level(bits)
    values = random.integers(-most, most + 1, (n, c)).astype(np.int8)
    exponents = random.integers(0, groups, c).astype(np.uint8)
    weights = random.integers(-128, 128, (c, k)).astype(np.int8)
    return Quantized(values, exponents, 0.5, bits, groups, axis=1), weights
