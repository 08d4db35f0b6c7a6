"""From sums to bytes: the factors of each channel, and the cheapest form that gives the same bytes.

Two things cost less without a byte being another one:

- a channel without weights is a constant, and needs no multiplier that has to be exact;
- vector units multiply floats in a third of the instructions that a product of 62 bits takes. A sum
  below 2^24 is a float, and scaled by one, with a single rounding, it never falls where the sum
  grows. So all there is to compare with the integers are the sums at which the byte becomes the
  next one, as many of them as the channel's weights can reach whatever the inputs are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge.targets.c99.pack import Int8s, Int32s
from fedkit.core.numerics import Int64s

LEAST_SHIFT = 31
"""What kernels take."""

NEAREST = 3
"""`near` of a channel whose float is the one nearest to its integer multiplier: EK_NEAREST."""

_ULPS = (0, 1, -1, 2, -2)
_MOST_SUM = 1 << 24  # floats beyond leave out integers
_MOST_SHIFT = 52  # 511 * 2^51 is below 2^62
_MOST_RESULT = 1 << 14  # kernels saturate it, with a zero point, from int16

Bools = NDArray[np.bool_]
Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class Requant:
    """An `ek_requant`.

    Attributes:
        bias: int32 [out], from `pack.folded_bias`.
        multiplier: int32 [out], 2^30 .. 2^31 - 1.
        shift: uint8 [out], 31 .. 62.
        zero: Zero point + 128, as are the limits.
    """

    bias: Int32s
    multiplier: Int32s
    shift: NDArray[np.uint8]
    zero: int
    low: int
    high: int


def simplified(requant: Requant, weights: Int8s) -> Requant:
    """Return the same with factors of 1/2 for channels that have no weights.

    Args:
        requant: Of a layer.
        weights: int8 [out, ...], its own.
    """
    shift = requant.shift.astype(np.int64)
    scaled = requant.bias.astype(np.int64) * requant.multiplier
    result = (scaled + (np.int64(1) << (shift - 1))) >> shift
    empty = ~_flat(weights).any(1) & (np.abs(result) < _MOST_RESULT)
    return replace(
        requant,
        bias=np.where(empty, 2 * result, requant.bias).astype(np.int32),
        multiplier=np.where(empty, 1 << 30, requant.multiplier).astype(np.int32),
        shift=np.where(empty, LEAST_SHIFT, requant.shift).astype(np.uint8),
    )


def near(requant: Requant, weights: Int8s) -> NDArray[np.uint8]:
    """Return `near` of each `ek_filter`: which float requantises the channel to the same bytes.

    Args:
        requant: Of a layer.
        weights: int8 [out, ...], its own.

    Returns:
        uint8 [out]: NEAREST + n for the float n places above the nearest, 0 for none.
    """
    least, most = _range(requant, weights)
    largest = np.maximum(np.abs(least), np.abs(most))
    results = np.arange(requant.low - requant.zero + 1, requant.high - requant.zero + 1)
    firsts = _first_sums(requant, results)
    found = np.zeros(len(weights), np.uint8)
    for ulps in _ULPS:
        scale = np.ldexp(_float(requant.multiplier, ulps), -requant.shift.astype(int))
        same = _same_steps(scale, firsts, results, least, most) & (largest * scale < _MOST_RESULT)
        found = np.where((found == 0) & same, NEAREST + ulps, found)
    usable = (largest < _MOST_SUM) & (requant.shift <= _MOST_SHIFT)
    return np.where(usable, found, 0).astype(np.uint8)


def _flat(weights: Int8s) -> Int64s:
    return weights.reshape(len(weights), -1).astype(np.int64)


def _range(requant: Requant, weights: Int8s) -> tuple[Int64s, Int64s]:
    """Return the least and the largest sum of each channel."""
    flat, bias = _flat(weights), requant.bias.astype(np.int64)
    return bias + 255 * np.minimum(flat, 0).sum(1), bias + 255 * np.maximum(flat, 0).sum(1)


def _first_sums(requant: Requant, results: Int64s) -> Int64s:
    """Return the least sum that becomes each result, [out, results]; of usable shifts."""
    shift = np.minimum(requant.shift, _MOST_SHIFT).astype(np.int64)[:, None]
    halves = (2 * results - 1) * (np.int64(1) << (shift - 1))
    return np.asarray(-(-halves // requant.multiplier.astype(np.int64)[:, None]))


def _float(multiplier: Int32s, ulps: int) -> Float64s:
    bits = multiplier.astype(np.float32).view(np.int32) + np.int32(ulps)
    return bits.view(np.float32).astype(np.float64)


def _same_steps(
    scale: Float64s, firsts: Int64s, results: Int64s, least: Int64s, most: Int64s
) -> Bools:
    """Return for which channels the float form takes each step at the same sum.

    Products of two floats are exact here. None may lie on a half, which floats round to even.
    """
    half, scale = results - 0.5, scale[:, None]
    low, high = least[:, None], most[:, None]
    at, before = np.clip(firsts, low, high), np.clip(firsts - 1, low, high)
    reached = (at * scale > half) | (firsts > high)
    not_yet = (before * scale < half) | (firsts <= low)
    return np.asarray((reached & not_yet).all(1))
