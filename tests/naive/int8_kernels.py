"""Slow, obvious references for the int8 inference kernels, in Python's integers and int64.

Tensors are int8 values [channels, height, width] in wider arrays; zero points are int8 values too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.graph.ir import Window

Array = NDArray[Any]


def sums(x: Array, weights: Array, bias: Array, window: Window, zero: int) -> Array:
    """Return the int64 sums of a convolution; weights: [out, in of a group, height, width]."""
    outputs, inner = weights.shape[:2]
    outer = outputs * inner // len(x)
    height, width = window.output(*x.shape[1:])
    result = np.zeros((outputs, height, width), np.int64)
    for o, y, column in np.ndindex(*result.shape):
        total = int(bias[o])
        for c in range(inner):
            for i, j, row, col in _inside(x, window, y, column):
                total += int(weights[o, c, i, j]) * (
                    int(x[o // outer * inner + c, row, col]) - zero
                )
        result[o, y, column] = total
    return result


def _inside(x: Array, window: Window, y: int, x_out: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (kernel row, kernel column, row, column) of what a window sees, without padding."""
    top, _, left, _ = window.padding
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            row = y * window.stride[0] + i * window.dilation[0] - top
            column = x_out * window.stride[1] + j * window.dilation[1] - left
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                yield i, j, row, column


def requantise(
    sums: Array, multiplier: Array, shift: Array, zero: int, low: int, high: int
) -> Array:
    """Requantise [channels, ...] by each channel's multiplier and shift."""
    result = np.zeros(sums.shape, np.int64)
    for place in np.ndindex(*sums.shape):
        m, s = int(multiplier[place[0]]), int(shift[place[0]])
        value = (int(sums[place]) * m + 2 ** (s - 1)) // 2**s
        result[place] = min(max(zero + value, low), high)
    return result


def add(
    a: Array, b: Array, scales: tuple[int, int], zeros: tuple[int, int], shift: int, zero: int,
    low: int, high: int,
) -> Array:  # fmt: skip
    total = (a - zeros[0]).astype(np.int64) * scales[0] + (b - zeros[1]) * scales[1]
    return np.clip(zero + (total + 2 ** (shift - 1)) // 2**shift, low, high)


def avg_pool(x: Array, window: Window) -> Array:
    return _pool(x, window, lambda seen: (2 * sum(seen) + len(seen)) // (2 * len(seen)))


def max_pool(x: Array, window: Window) -> Array:
    return _pool(x, window, max)


def _pool(x: Array, window: Window, reduce: Any) -> Array:
    result = np.zeros((len(x), *window.output(*x.shape[1:])), np.int64)
    for c, y, column in np.ndindex(*result.shape):
        seen = [int(x[c, row, col]) for _, _, row, col in _inside(x, window, y, column)]
        result[c, y, column] = reduce(seen)
    return result


def group_norm(
    x: Array,
    zero: int,
    groups: int,
    factor: Array,
    offset: Array,
    eps: int,
    shift: int,
    out_zero: int,
    low: int,
    high: int,
    centred: bool = True,
) -> Array:
    """Normalise int8 [c, h, w] by groups of channels, in Python's integers of any size."""
    out = np.zeros(x.shape, np.int64)
    each = len(x) // groups
    for c in range(len(x)):
        first = c - c % each
        v = [int(value) - zero for value in x[first : first + each].ravel()]
        count, total = len(v), sum(v) * centred
        size = count * sum(value * value for value in v) - total * total + eps
        halvings = 0
        while size < 2**60:
            size, halvings = 4 * size, halvings + 1
        inverse, behind = 2**61 // math.isqrt(size), 61 - 24 - halvings
        for i, j in np.ndindex(*x.shape[1:]):
            hat = (count * (int(x[c, i, j]) - zero) - total) * inverse
            hat = (hat + 2 ** (behind - 1)) >> behind
            value = ((hat * int(factor[c]) + int(offset[c])) >> shift) + out_zero
            out[c, i, j] = min(max(value, low), high)
    return out


def channel_norm(x: Array, centred: bool, zero: int, **rest: Any) -> Array:
    """Normalise the channels of each place of int8 [c, h, w], as `group_norm` does one group."""
    out = np.zeros(x.shape, np.int64)
    for i, j in np.ndindex(*x.shape[1:]):
        place = slice(i, i + 1), slice(j, j + 1)
        out[:, *place] = group_norm(x[:, *place], zero, 1, centred=centred, **rest)
    return out
