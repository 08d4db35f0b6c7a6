"""How quantised numbers are stored: few bits each, and a scale that a shift adapts per channel.

With m = 2^(bits-1) - 1 and R = max|x|, a channel of range r_c = max|x_c| is in the group
e_c = min(groups - 1, floor(log2(R / r_c))) and has the scale s_c = (R / m) * 2^-e_c. All channels
so lie on one grid of step (R / m) * 2^-(groups-1), which a left shift by groups - 1 - e_c brings
them to: sums over channels need one integer accumulator.

ShiftQuant as we reconstruct it; only the abstract of Guo et al., arXiv 2411.10948, was available.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import QuantizationError

INT8_MOST = 127
GROUPS_MOST = 24
"""Groups of a tensor at most, so that every value on the common grid fits int32."""


def largest_level(bits: int) -> int:
    """Return m = 2^(bits-1) - 1, the largest stored value; the smallest is -m.

    Raises:
        QuantizationError: `bits` is not in 2 .. 8.
    """
    if not 2 <= bits <= 8:
        raise QuantizationError(f"bits is {bits}; values are stored in 2 .. 8 bits: choose fewer")
    return (1 << bits - 1) - 1


def groups_that_fit(bits: int) -> int:
    """Return the most groups with which values on the common grid still fit int8.

    >>> [groups_that_fit(bits) for bits in (4, 6, 8)]
    [5, 3, 1]
    """
    return (INT8_MOST // largest_level(bits)).bit_length()


def check_groups(groups: int) -> None:
    """Refuse a number of groups outside 1 .. 24.

    Raises:
        QuantizationError: It is.
    """
    if not 1 <= groups <= GROUPS_MOST:
        raise QuantizationError(
            f"groups is {groups}; a tensor has 1 .. {GROUPS_MOST}: choose as many as "
            "groups_that_fit(bits) gives"
        )


def exponents(ranges: NDArray[np.floating[Any]], groups: int) -> NDArray[np.uint8]:
    """Return the group e_c of every channel, exactly: no logarithm is rounded.

    Args:
        ranges: r_c = max|x_c| [channels], finite and >= 0.
        groups: Number of groups.

    Returns:
        uint8 [channels], 0 .. groups - 1; groups - 1 where a range is 0.
    """
    check_groups(groups)
    fractions, powers = np.frexp(ranges.astype(np.float64))
    fraction, power = np.frexp(np.float64(ranges.max(initial=0)))
    # R / r_c = 2^(power - powers) * fraction / fractions, and the last quotient is in (1/2, 2).
    octaves = power - powers.astype(np.int64) - (fraction < fractions)
    octaves = np.where(ranges > 0, octaves, groups - 1)
    return np.minimum(octaves, groups - 1).astype(np.uint8)


@dataclass(frozen=True)
class PerChannel:
    """Quantised numbers with any scale per channel; sums over channels have no common grid.

    Attributes:
        values: int8 within +-m, channels on `axis`.
        channel_scales: float64 [channels], positive.
        bits: 2 .. 8.
        axis: The channels' axis, >= 0.
    """

    values: NDArray[np.int8]
    channel_scales: NDArray[np.float64]
    bits: int
    axis: int

    def __post_init__(self) -> None:
        _check(self.values, self.channel_scales, self.bits, self.axis)

    def dequantize(self) -> NDArray[np.float32]:
        """Return values * scales, float32 of the values' shape."""
        return _dequantize(self)


@dataclass(frozen=True)
class Quantized:
    """Quantised numbers whose scales differ by powers of two; one group is a per-tensor format.

    Attributes:
        values: int8 within +-m, channels on `axis`.
        exponents: uint8 [channels], e_c in 0 .. groups - 1.
        scale: R / m, the scale of group 0; 1.0 if all numbers are 0.
        bits: 2 .. 8.
        groups: 1 .. 24.
        axis: The channels' axis, >= 0.
    """

    values: NDArray[np.int8]
    exponents: NDArray[np.uint8]
    scale: float
    bits: int
    groups: int
    axis: int

    def __post_init__(self) -> None:
        check_groups(self.groups)
        if self.exponents.dtype != np.uint8 or self.exponents.max(initial=0) >= self.groups:
            raise QuantizationError(
                f"exponents are {self.exponents.dtype} up to {self.exponents.max(initial=0)}; with "
                f"{self.groups} groups they must be uint8 below {self.groups}: quantise anew"
            )
        _check(self.values, self.channel_scales, self.bits, self.axis)

    @property
    def channel_scales(self) -> NDArray[np.float64]:
        """s_c = scale * 2^-e_c, float64 [channels]."""
        return np.ldexp(self.scale, -self.exponents.astype(np.int32))

    @property
    def shifts(self) -> NDArray[np.int32]:
        """Left shift per channel that leads to the common grid, int32 [channels]."""
        return self.groups - 1 - self.exponents.astype(np.int32)

    @property
    def step(self) -> float:
        """Step of the common grid, scale * 2^-(groups-1)."""
        return math.ldexp(self.scale, 1 - self.groups)

    @property
    def fits_int8(self) -> bool:
        """Whether the format's values on the common grid are int8: m * 2^(groups-1) <= 127."""
        return self.groups <= groups_that_fit(self.bits)

    def aligned(self) -> NDArray[np.int32]:
        """Return the values on the common grid, int32; times `step` they are the numbers."""
        shifts = over_channels(self.shifts, self.values.ndim, self.axis)
        return np.left_shift(self.values, shifts, dtype=np.int32)

    def dequantize(self) -> NDArray[np.float32]:
        """Return values * scales, float32 of the values' shape."""
        return _dequantize(self)


def over_channels(per_channel: NDArray[Any], ndim: int, axis: int) -> NDArray[Any]:
    """Return [channels] in a shape that broadcasts against `ndim` axes, channels on `axis`."""
    return per_channel.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _dequantize(stored: PerChannel | Quantized) -> NDArray[np.float32]:
    scales = over_channels(stored.channel_scales, stored.values.ndim, stored.axis)
    return np.multiply(stored.values, scales, dtype=np.float64).astype(np.float32)


def _check(values: NDArray[np.int8], scales: NDArray[np.float64], bits: int, axis: int) -> None:
    most = largest_level(bits)
    if values.dtype != np.int8 or np.abs(values.astype(np.int16)).max(initial=0) > most:
        raise QuantizationError(
            f"values are {values.dtype}; {bits} bits hold int8 within +-{most}: quantise anew"
        )
    if not 0 <= axis < values.ndim or scales.shape != (values.shape[axis],):
        raise QuantizationError(
            f"{scales.size} scales for channels on axis {axis} of shape {values.shape}; there must "
            "be one per channel: name the axis of the channels, counted from 0"
        )
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise QuantizationError(
            "a scale is not positive and finite; use 1.0 where all numbers are 0"
        )
