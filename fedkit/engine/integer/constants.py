"""What kernels are told: real factors per channel as multipliers and shifts.

A kernel knows no real number. Its formulas are (a * x + b + half) >> shift over int32 (gradients
are rounded half to even instead, or at random: they are summed again, see
docs/decisions/integer-engine); the functions here choose the integers so that no sum leaves int32,
whatever x holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedkit.engine.plan.structure import Activation

Reals = NDArray[np.float64]
Ints = NDArray[np.int32]

CODE = 127
"""Largest magnitude of a stored int8 value."""

WIDE = 32767
"""Largest magnitude of an int16 that kernels write."""

ONE = 1.0 / 16
"""What the code 1 of a normalised value stands for: 4 bits behind the point."""

CLIP = {2: 1.224, 3: 1.9523, 4: 2.4739, 5: 2.8987, 6: 3.2701, 7: 3.6075, 8: 3.9205, 9: 4.2147}
"""`fedkit.integers.per_channel.gaussian_clip` per bits, the same digits on every machine."""

Carrier = Literal["none", "x", "sign", "hat"]

CARRIED: dict[Carrier, float] = {"none": 0.0, "x": float(CODE), "sign": 1.0, "hat": float(WIDE)}
"""Largest magnitude of what is carried: nothing, x, its sign, or a normalised value."""

_MULTIPLIER_BITS = 15
_ROOM = 2.0**29
_LOWEST = np.int32(-(2**30))
_HIGHEST = np.int32(2**30)


@dataclass(frozen=True)
class Read:
    """Reads int8 x as clamp((a * x + b + half) >> shift, low, high); all arrays int32 [channels].

    A read passes gradients where start < a * x + b < end; and one that `clips`, as it reads in
    steps finer than its range, passes none from where it gives +-high.
    """

    a: Ints
    b: Ints
    shift: Ints
    low: int
    high: int
    start: Ints
    end: Ints
    clips: bool = False


@dataclass(frozen=True)
class Chain:
    """Passes int16 gradients g as clamp((a * g + b * k + c + r) >> shift) * factor.

    k is a `Carrier`; behind a batch norm g counts as 0 where |x| is CODE, a value that the norm cut
    off. r rounds half to even, or at random if there is a `key`; the clamp is at +-limit. Arrays
    are int32 [channels], or [examples] behind a layer norm.
    """

    a: Ints
    b: Ints
    c: Ints
    shift: Ints
    factor: Ints
    carrier: Carrier
    limit: int
    key: int | None = None


@dataclass(frozen=True)
class Mix:
    """Adds `new` to `old` as (a * old + b * new) >> shift, rounded half to even.

    Arrays are int32 [channels].
    """

    a: Ints
    b: Ints
    shift: Ints


@dataclass(frozen=True)
class Requantisation:
    """Makes int8 of int16 as (a * (raw - centre) + b + half) >> shift; arrays int32 [channels]."""

    centre: Ints
    a: Ints
    b: Ints
    shift: Ints


def multiplier(factor: Reals, most_shift: int | Ints, most: int = WIDE) -> tuple[Ints, Ints]:
    """Return (m, shift) with factor ~= m * 2^-shift, |m| <= most and 0 <= shift <= most_shift.

    m has 15 significant bits, or more where even without a shift they are too few.
    """
    shift = np.clip(_MULTIPLIER_BITS - np.frexp(factor)[1], 0, most_shift)
    scaled = np.rint(np.ldexp(factor, shift))
    limit = np.where(shift > 0, WIDE, most)
    return to_int32(np.clip(scaled, -limit, limit)), to_int32(shift)


def read_constants(
    factor: Reals,
    offset: Reals,
    activation: Activation,
    high: int,
    six: float,
) -> Read:
    """Return how to read factor * x + offset through an activation, in units of the result.

    Args:
        factor: Per channel, what the code 1 is worth.
        offset: Per channel.
        activation: What is applied; without one results lie within +-high, else within 0 and high.
        high: Largest result.
        six: 6 in units of the result, where relu6 cuts off.
    """
    # frexp: |offset| < 2^exponent. An offset may be far larger than what is added to it.
    a, shift = multiplier(factor, np.clip(29 - np.frexp(offset)[1], 0, 20))
    b = np.clip(np.rint(np.ldexp(offset, shift)), -_ROOM, _ROOM)
    channels, low = len(a), -high if activation == "none" else 0
    start = np.zeros(channels) if low == 0 else np.full(channels, _LOWEST)
    end = np.full(channels, _HIGHEST)
    if activation == "relu6":
        high = min(high, round(six))
        end = np.minimum(np.rint(np.ldexp(six, shift)), end)
    return Read(a, to_int32(b), shift, low, high, to_int32(start), to_int32(end))


def chain_constants(
    a: Reals,
    b: Reals,
    c: Reals,
    carrier: Carrier,
    most: Reals,
    limit: int,
    factor: Ints | None = None,
    key: int | None = None,
) -> Chain:
    """Return how to compute a * g + b * k + c, given that |g| <= most.

    Args:
        a: Per channel, as the others, in units of the result.
        b: Of what is carried.
        c: Constant.
        carrier: What is carried.
        most: Largest magnitude of g.
        limit: Largest result.
        factor: What results are multiplied by.
        key: Rounds at random, by this key.
    """
    carried = CARRIED[carrier]
    bound = np.abs(a) * np.maximum(most, 1.0) + np.abs(b) * carried + np.abs(c)
    # frexp: bound < 2^exponent. Neither may a leave int16, so that a * g fits int32.
    shift = np.minimum(29 - np.frexp(bound)[1], _MULTIPLIER_BITS - np.frexp(a)[1])
    shift = np.clip(shift, 0, 29)
    # Without a shift even the sums may be too large: what is limited here exceeds any `limit`.
    return Chain(
        a=_within(np.ldexp(a, shift), _ROOM / np.maximum(most, 1.0)),
        b=_within(np.ldexp(b, shift), _ROOM / max(carried, 1.0)),
        c=_within(np.ldexp(c, shift), _ROOM),
        shift=to_int32(shift),
        factor=np.ones(len(a), np.int32) if factor is None else factor,
        carrier=carrier,
        limit=limit,
        key=key,
    )


def _within(real: Reals, most: Reals | float) -> Ints:
    return to_int32(np.clip(np.rint(real), -most, most))


def mix_constants(old: Reals, new: Reals) -> Mix:
    """Return how to add two gradients whose units are `old` and `new` times that of the result."""
    # A unit is that much larger than the result's only where all that it measures is 0.
    old, new = (
        np.minimum(np.rint(np.ldexp(units, _MULTIPLIER_BITS)), _HIGHEST) for units in (old, new)
    )
    return Mix(to_int32(old), to_int32(new), np.full(len(old), _MULTIPLIER_BITS, np.int32))


def shift_to_fit(bound: Reals) -> Ints:
    """Return the least shift after which a rounded number of this magnitude fits int16."""
    shift = np.maximum(np.frexp(bound / WIDE)[1] - 1, 0)
    fits = np.floor((bound + np.ldexp(0.5, shift)) / np.ldexp(1.0, shift)) <= WIDE
    return to_int32(np.where(fits, shift, shift + 1))


def shift_to_fit_all(bound: float) -> int:
    """Return that of a bound of all channels."""
    return int(shift_to_fit(np.array([bound]))[0])


def first_bits(values: Reals) -> Reals:
    """Round to 40 significant bits, in which functions that machines round apart agree."""
    fraction, exponent = np.frexp(values)
    return np.asarray(np.ldexp(np.rint(np.ldexp(fraction, 40)), exponent - 40))


def to_int32(values: ArrayLike) -> Ints:
    """Return a contiguous int32 array."""
    return np.ascontiguousarray(values, np.int32)
