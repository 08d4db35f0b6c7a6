"""A window that slides over a feature map, as one shifted view per tap of its kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedkit.graph import ir

Number = TypeVar("Number", bound=np.generic)


def padded(x: NDArray[Number], window: ir.Window | None, value: float) -> NDArray[Number]:
    """Return [n, h, w, c] with the window's padding filled with a value."""
    assert window is not None  # the verifier's rule
    top, bottom, left, right = window.padding
    if not any(window.padding):
        return x
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def taps(
    x: NDArray[Number], window: ir.Window | None, fill: float = 0.0
) -> Iterator[tuple[int, int, NDArray[Number]]]:
    """Yield (kernel row, kernel column, what that tap reads: [n, out h, out w, c])."""
    assert window is not None  # the verifier's rule
    rows, columns = window.output(x.shape[1], x.shape[2])
    (stride_y, stride_x), (dilation_y, dilation_x) = window.stride, window.dilation
    x = padded(x, window, fill)
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            top, left = i * dilation_y, j * dilation_x
            end_y, end_x = top + (rows - 1) * stride_y + 1, left + (columns - 1) * stride_x + 1
            yield i, j, x[:, top:end_y:stride_y, left:end_x:stride_x]
