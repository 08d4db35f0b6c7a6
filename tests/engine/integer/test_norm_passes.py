"""The passes of a norm, kernel by kernel, at the ends of int16 and of their constants."""

from __future__ import annotations

from ctypes import byref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedkit.engine.integer import native_backend, numpy_backend
from fedkit.engine.integer.constants import WIDE, Carrier, Chain, Mix, to_int32
from fedkit.engine.kernels import int_native as integer_native
from fedkit.engine.kernels import native
from tests.engine.kernels import kernel_sets
from tests.engine.kernels.programs import address

PLANE = 0x3FFF + 2
"""Pixels, one more than a kernel sums in one go and one again."""


@pytest.fixture(scope="module", params=kernel_sets.names())
def kernels(request: pytest.FixtureRequest, shared_folder: Path) -> native.Kernels:
    if lacking := kernel_sets.missing(request.param):
        pytest.skip(lacking)
    return kernel_sets.load(request.param, shared_folder)


def tiles(rows: NDArray[Any], lanes: int) -> NDArray[Any]:
    """Return [examples, channels, plane] as [tiles][channels][plane][lanes]; 77 beyond examples."""
    count = -(-len(rows) // lanes) * lanes
    whole = np.full((count, *rows.shape[1:]), 77, rows.dtype)
    whole[: len(rows)] = rows
    return np.ascontiguousarray(np.moveaxis(whole.reshape(-1, lanes, *rows.shape[1:]), 1, -1))


def rows_of(tiled: NDArray[Any], examples: int) -> NDArray[Any]:
    """Return what `tiles` was given."""
    return np.moveaxis(tiled, -1, 1).reshape(-1, *tiled.shape[1:-1])[:examples]


def extremes(shape: tuple[int, ...], seed: int) -> NDArray[np.int16]:
    """Return a channel of anything, one of the largest and one of the smallest."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(-WIDE - 1, WIDE + 1, shape).astype(np.int16)
    raw[:, 1], raw[:, 2] = WIDE, -WIDE - 1
    return raw


def test_statistics_of_extremes(kernels: native.Kernels) -> None:
    lanes = int(kernels.int_lanes())
    raw = extremes((lanes + 1, 3, PLANE), 0)
    tiled, wide = tiles(raw, lanes), raw.astype(np.int64)
    tensor = integer_native.IntTensor(
        raw=tiled.ctypes.data, examples=len(raw), channels=3, plane=PLANE
    )
    sums, peak = np.zeros(3, np.int64), np.zeros(3, np.int32)
    kernels.int_raw_sums(byref(tensor), 0, 2, address(sums), address(peak))
    assert sums.tolist() == wide.sum((0, 2)).tolist()
    assert peak.tolist() == np.abs(wide).max((0, 2)).tolist()

    # Products of -32768 with itself: two of them fit 32 bits only without a sign.
    kept = np.maximum(tiled, -WIDE)
    tensor.raw, wide = kept.ctypes.data, np.maximum(wide, -WIDE)
    sums, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
    kernels.int_raw_squares(byref(tensor), 0, 2, address(sums), address(squares))
    assert sums.tolist() == wide.sum((0, 2)).tolist()
    assert squares.tolist() == np.square(wide).sum((0, 2)).tolist()


@pytest.mark.parametrize("centre", [0, 5, WIDE, -WIDE, -WIDE - 1, 40000, 65534, -65535, 2**30])
def test_centres_beyond_int16(kernels: native.Kernels, centre: int) -> None:
    """A running mean, in units of another batch, may lie anywhere."""
    lanes = int(kernels.int_lanes())
    raw = extremes((lanes + 1, 3, 50), 1)
    tiled, codes = tiles(raw, lanes), np.zeros((2, 3, 50, lanes), np.int8)
    tensor = integer_native.IntTensor(
        x=codes.ctypes.data, raw=tiled.ctypes.data, examples=len(raw), channels=3, plane=50
    )
    middle, spread = to_int32([centre] * 3), np.zeros(3, np.int64)
    kernels.int_raw_spread(byref(tensor), address(middle), 0, 2, address(spread))
    centred = np.clip(raw.astype(np.int64) - centre, -WIDE, WIDE)
    assert spread.tolist() == np.abs(centred).sum((0, 2)).tolist()

    a, b, shift = to_int32([WIDE, -WIDE, 3]), to_int32([5, 2**29, -1]), to_int32([23, 22, 0])
    arrays = [address(array) for array in (middle, a, b, shift)]
    kernels.int_requantise(byref(tensor), *arrays, 0, 2)
    y = a[:, None] * centred + b[:, None] + (2 ** shift.astype(np.int64) // 2)[:, None]
    expected = np.clip(y >> shift[:, None], -127, 127)
    np.testing.assert_array_equal(rows_of(codes, len(raw)), expected)


@pytest.mark.parametrize("key", [None, 0x9876_5432_1234_5678])
@pytest.mark.parametrize("carrier", ["none", "x", "sign"])
def test_passing_by_constants_of_any_width(
    kernels: native.Kernels, carrier: Carrier, key: int | None
) -> None:
    """In the last channels they leave what 16 bits can multiply."""
    lanes, plane = int(kernels.int_lanes()), 37
    rng = np.random.default_rng(2)
    most = {"none": 0, "x": 2**29 // 127, "sign": 2**29}[carrier]
    chain = Chain(
        a=to_int32([WIDE, -WIDE, 0, 32768, 9]),
        b=to_int32([most // 2 - 7, -(most // 3), most - 1, 5, -most]),
        c=to_int32([-7, 2**28, -(2**28), 0, 1]),
        shift=to_int32([23, 20, 0, 24, 1]),
        factor=to_int32([1, 1, 2, 8, 258]),
        carrier=carrier,
        limit=127,
        key=key,
    )
    g = rng.integers(-WIDE // 2, WIDE // 2, (lanes + 1, 5, plane)).astype(np.int16)
    x = rng.choice([-127, -126, -1, 0, 1, 126, 127], g.shape).astype(np.int8)
    tiled_g, tiled_x, out = (
        tiles(g, lanes),
        tiles(x, lanes),
        np.zeros((2, 5, plane, lanes), np.int16),
    )
    shape = {"examples": len(g), "channels": 5, "plane": plane}
    source = integer_native.IntTensor(gradient=out.ctypes.data, **shape)
    target = integer_native.IntTensor(x=tiled_x.ctypes.data, gradient=tiled_g.ctypes.data, **shape)
    zeros = np.zeros(5, np.int32)
    how, mix = (
        native_backend.chain_struct(chain),
        native_backend.mix_struct(Mix(zeros, zeros, zeros)),
    )
    kernels.int_copy_backward(byref(source), byref(target), byref(how), byref(mix), 0, 0, 0, 2)

    wide_g, wide_x = g.astype(np.int64)[..., None], x.astype(np.int64)[..., None]
    carried = None
    if carrier != "none":
        carried = wide_x if carrier == "x" else np.sign(wide_x)
        wide_g = numpy_backend.uncut(wide_g, wide_x)
    expected = numpy_backend.pass_through(wide_g, carried, chain, numpy_backend.across)
    np.testing.assert_array_equal(rows_of(out, len(g)), expected[..., 0])
    assert not np.moveaxis(out, -1, 1).reshape(-1, 5, plane)[len(g) :].any()
