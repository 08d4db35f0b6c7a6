"""Resizes to the nearest: which place of an axis each place of the result is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.graph.operands import require

Numbers = NDArray[Any]
Sizes = tuple[int, int, float]
"""Of what is read, of the result, and of the result before it was rounded down."""


def _resized(coordinates: str, nearest: str, sizes: Sizes, scale: np.floating[Any]) -> Numbers:
    """Return which place each place of a result is, in numbers of the scale's type."""
    kind, (size, out, _) = scale.dtype.type, sizes
    found = _COORDINATES[coordinates](np.arange(out).astype(kind), sizes, scale)
    places = _NEAREST[nearest](found.astype(kind))
    return np.asarray(np.clip(places, 0, size - 1).astype(np.int64))


def _half_pixel(i: Numbers, sizes: Sizes, scale: np.floating[Any]) -> Numbers:
    return np.asarray((i + scale.dtype.type(0.5)) / scale - scale.dtype.type(0.5))


def _symmetric(i: Numbers, sizes: Sizes, scale: np.floating[Any]) -> Numbers:
    size, out, one = *map(scale.dtype.type, sizes[:2]), scale.dtype.type(1)
    cut = size / (one + one) * (one - out / (scale * size))
    return np.asarray(cut + _half_pixel(i, sizes, scale))


def _align_corners(i: Numbers, sizes: Sizes, scale: np.floating[Any]) -> Numbers:
    size, _, length = sizes
    return np.asarray(i * (size - 1) / (length - 1)) if length > 1 else 0 * i


_COORDINATES: Mapping[str, Callable[[Numbers, Sizes, np.floating[Any]], Numbers]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda i, sizes, scale: (
        _half_pixel(i, sizes, scale) if sizes[1] > 1 else 0 * i
    ),
    "align_corners": _align_corners,
    "asymmetric": lambda i, sizes, scale: i / scale,
    "tf_half_pixel_for_nn": lambda i, sizes, scale: (i + scale.dtype.type(0.5)) / scale,
}
"""Takes the places of the result, the sizes and the scale."""

_NEAREST: Mapping[str, Callable[[Numbers], Numbers]] = {
    "round_prefer_floor": lambda x: np.ceil(x - x.dtype.type(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + x.dtype.type(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def require_known(coordinates: str, nearest: str) -> None:
    """Raise `Unsupported` for a way of ONNX to count that has no name here."""
    known = coordinates in _COORDINATES and nearest in _NEAREST
    require(known, f"a resize by the coordinates {coordinates}, nearest {nearest}")


def nearest_places(
    coordinates: str, nearest: str, size: int, out: int, scale: float
) -> NDArray[np.int64]:
    """Return which place each place of a result is, where all runtimes agree.

    Args:
        coordinates: `coordinate_transformation_mode` of ONNX.
        nearest: `nearest_mode` of ONNX.
        size: Of what is read.
        out: Of the result.
        scale: From the one to the other.

    Raises:
        Unsupported: It depends on the type of the numbers, or on how a size is rounded.
    """
    found = {
        tuple(_resized(coordinates, nearest, (size, out, length), kind(scale)).tolist())
        for length in (out, scale * size)
        for kind in (np.float32, np.float64)
    }
    require(len(found) == 1, f"a resize by {scale:.9g}, which runtimes round in several ways")
    return np.array(found.pop())
