"""Slow, obvious references for what the integer engine multiplies of two activations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.softmax_shares import SoftmaxShares
from tests.naive.integers import clamp, half_even, half_up

Array = NDArray[Any]

WIDE = 32767


def power(f: int) -> int:
    """Return 2^-(f / 1024) in steps of 2^-15."""
    third = half_up(f * 1286, 10)
    second = half_up(f * (7561 - third), 10)
    return 32768 - half_up(f * (22659 - second), 10)


def shares(scores: list[int], how: SoftmaxShares) -> list[int]:
    """Return the shares of a row of scores."""
    codes = []
    for score in scores:
        below = max(scores) - score
        whole, f = divmod(half_up(below * 2**how.left * how.a, 15), 1024)
        codes.append(half_up(power(f) * how.top, 15 + whole) if below <= how.cut else 0)
    total = sum(codes)
    length = total.bit_length()
    factor = (2 ** (length + 14) - 1) // total
    return [half_up(code * factor, length + 14 - how.bits) for code in codes]


def slopes(share: list[int], g: list[int], bits: int) -> list[int]:
    """Return what the scores get of the gradients of their shares."""
    mean = half_even(sum(s * each for s, each in zip(share, g, strict=True)), bits)
    return [s * clamp(each - mean, WIDE) for s, each in zip(share, g, strict=True)]


def softmax(x: Array, how: SoftmaxShares) -> Array:
    """Return shares over the channels of each place, of scores [n, channels, height, width]."""
    y = np.zeros(x.shape, np.int64)
    for n, row, column in np.ndindex(len(x), *x.shape[2:]):
        y[n, :, row, column] = shares(x[n, :, row, column].tolist(), how)
    return y


def softmax_slopes(share: Array, p: Array, bits: int) -> Array:
    """Return what scores get, [n, channels, height, width]."""
    y = np.zeros(share.shape, np.int64)
    for n, row, column in np.ndindex(len(share), *share.shape[2:]):
        at = n, slice(None), row, column
        y[at] = slopes(share[at].tolist(), p[at].tolist(), bits)
    return y


def product(left: Array, right: Array) -> Array:
    """Return [n, channels of right, rows, columns of left]."""
    n, terms, rows, columns = left.shape
    y = np.zeros((n, right.shape[1], rows, columns), np.int64)
    for z, c, row, column in np.ndindex(*y.shape):
        for k in range(terms):
            y[z, c, row, column] += int(left[z, k, row, column]) * int(right[z, c, row, k])
    return y


def product_backward(left: Array, right: Array, p: Array) -> tuple[Array, Array]:
    """Return the sums that both sides get."""
    to_left, to_right = np.zeros(left.shape, np.int64), np.zeros(right.shape, np.int64)
    for z, c, row, column in np.ndindex(*p.shape):
        for k in range(left.shape[1]):
            to_left[z, k, row, column] += int(p[z, c, row, column]) * int(right[z, c, row, k])
            to_right[z, c, row, k] += int(p[z, c, row, column]) * int(left[z, k, row, column])
    return to_left, to_right


def by_head(x: Array, heads: int) -> Array:
    """Return [n, heads, channels of a head, places]."""
    return x.reshape(len(x), heads, x.shape[1] // heads, -1)


def dot(left: Array, right: Array) -> int:
    return sum(int(a) * int(b) for a, b in zip(left.tolist(), right.tolist(), strict=True))


def pairs(left: Array, right: Array) -> Array:
    """Return [n, heads, places of left, places of right] of two [n, heads, size, places]."""
    y = np.zeros((*left.shape[:2], left.shape[3], right.shape[3]), np.int64)
    for n, h, i, j in np.ndindex(*y.shape):
        y[n, h, i, j] = dot(left[n, h, :, i], right[n, h, :, j])
    return y


def weighted(x: Array, weights: Array) -> Array:
    """Return [n, heads, size, rows] of x [n, heads, size, columns], weights [.., rows, columns]."""
    y = np.zeros((*x.shape[:3], weights.shape[2]), np.int64)
    for n, h, c, i in np.ndindex(*y.shape):
        y[n, h, c, i] = dot(x[n, h, c], weights[n, h, i])
    return y


def attention_shares(sums: Array, shift: int, how: SoftmaxShares, causal: bool) -> Array:
    """Return weights, of sums [n, heads, queries, keys] that have the sign of the scale."""
    y = np.zeros(sums.shape, np.int64)
    for n, h, q in np.ndindex(*sums.shape[:3]):
        seen = min(q + 1, sums.shape[3]) if causal else sums.shape[3]
        scores = [half_up(int(each), shift) for each in sums[n, h, q, :seen]]
        y[n, h, q, :seen] = shares(scores, how)
    return y


def attention_slopes(share: Array, g: Array, shift: int, bits: int, sign: int) -> Array:
    """Return what scores get, of g, the sums of gradients times values."""
    y = np.zeros(share.shape, np.int64)
    for at in np.ndindex(*share.shape[:3]):
        narrow = [half_even(int(each), shift) for each in g[at]]
        y[at] = sign * np.array(slopes(share[at].tolist(), narrow, bits))
    return y
