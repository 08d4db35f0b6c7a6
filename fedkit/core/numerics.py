"""The integer contract: how numbers are clipped, shifted, scaled and drawn, to the last bit.

Training, export and the C kernels share these definitions, so that a model computes the same
integers wherever it runs. A name carries its rounding mode: floor, half_up, half_away, half_even,
stochastic. Every function takes integer arrays of any width, computes in int64 and is exact for
every argument it accepts; what it does not accept is a ValueError.

A shift by s divides by 2^s. What is left over, r = x mod 2^s, decides the rounding; x itself is
never added to, so no argument overflows. For |x| < 2^62 the usual forms, such as
(x + (1 << (s - 1))) >> s for half_up, give the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int64s = NDArray[np.int64]

MOST_SHIFT = 62
"""Largest shift: 2^62 is the largest power of two in int64."""

K = math.sqrt(math.pi / 2)
"""Standard deviation of a normal distribution, divided by its mean absolute deviation."""

_GOLDEN_RATIO = 0x9E3779B97F4A7C15
_MASK_64 = 2**64 - 1


# Clipping


def saturate(x: ArrayLike, bits: int, signed: bool = True) -> Int64s:
    """Clip to two's complement [-2^(bits-1), 2^(bits-1) - 1], or unsigned [0, 2^bits - 1].

    >>> saturate([-200, 5, 200], 8).tolist(), saturate([-200, 5, 300], 8, signed=False).tolist()
    ([-128, 5, 127], [0, 5, 255])

    Args:
        x: Integers of any shape.
        bits: 1 .. 63.
        signed: Whether the range holds negative numbers.
    """
    _check_within("bits", bits, 1, 63)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return np.clip(_integers("x", x), low, high)


def saturate_symmetric(x: ArrayLike, bits: int) -> Int64s:
    """Clip to [-(2^(bits-1) - 1), 2^(bits-1) - 1], which negation does not leave.

    Args:
        x: Integers of any shape.
        bits: 2 .. 63.
    """
    _check_within("bits", bits, 2, 63)
    most = 2 ** (bits - 1) - 1
    return np.clip(_integers("x", x), -most, most)


# Shifts


def shift_right_floor(x: ArrayLike, shift: ArrayLike) -> Int64s:
    """Return floor(x / 2^shift).

    Args:
        x: Integers of any shape.
        shift: 0 .. 62, of a shape that broadcasts; so for the other shifts.
    """
    return _parts(x, shift, MOST_SHIFT)[0]


def shift_right_half_up(x: ArrayLike, shift: ArrayLike) -> Int64s:
    """Return x / 2^shift rounded to nearest, halves towards +infinity.

    >>> shift_right_half_up([-6, -5, 5, 6], 2).tolist()
    [-1, -1, 1, 2]
    """
    floor, rest, one = _parts(x, shift, MOST_SHIFT)
    up: NDArray[np.bool_] = 2 * rest >= one
    return floor + up


def shift_right_half_away(x: ArrayLike, shift: ArrayLike) -> Int64s:
    """Return x / 2^shift rounded to nearest, halves away from 0.

    >>> shift_right_half_away([-6, -5, 5, 6], 2).tolist()
    [-2, -1, 1, 2]
    """
    floor, rest, one = _parts(x, shift, MOST_SHIFT)
    up: NDArray[np.bool_] = (2 * rest > one) | ((2 * rest == one) & (floor >= 0))
    return floor + up


def shift_right_half_even(x: ArrayLike, shift: ArrayLike) -> Int64s:
    """Return x / 2^shift rounded to nearest, halves to the even neighbour.

    >>> shift_right_half_even([-6, -2, 2, 6], 2).tolist()
    [-2, 0, 0, 2]
    """
    floor, rest, one = _parts(x, shift, MOST_SHIFT)
    up: NDArray[np.bool_] = (2 * rest > one) | ((2 * rest == one) & (floor & 1 == 1))
    return floor + up


def shift_right_stochastic(x: ArrayLike, shift: ArrayLike, random: NDArray[np.uint32]) -> Int64s:
    """Return (x + (random mod 2^shift)) >> shift: x / 2^shift on average, by at most one off.

    Args:
        x: Integers of any shape.
        shift: 0 .. 31, of a shape that broadcasts.
        random: uint32, uniform, of a shape that broadcasts; see `random_bits`.
    """
    floor, rest, one = _parts(x, shift, 31)
    up: NDArray[np.bool_] = rest + (_uint32("random", random) & (one - 1)) >= one
    return floor + up


def _parts(x: ArrayLike, shift: ArrayLike, most: int) -> tuple[Int64s, Int64s, Int64s]:
    """Return floor(x / 2^shift), x mod 2^shift, and 2^shift."""
    x, shift = _integers("x", x), _integers("shift", shift)
    _check_within("shift", shift, 0, most)
    one = np.left_shift(np.int64(1), shift)
    return x >> shift, x & (one - 1), one


# Fixed point


@dataclass(frozen=True)
class FixedPoint:
    """A real number as multiplier * 2^-shift; or an array of them.

    Attributes:
        multiplier: |multiplier| < 2^31; int, or int64 of any shape.
        shift: 0 .. 62, of the same shape.

    Raises:
        ValueError: A field is out of its range.
    """

    multiplier: int | Int64s
    shift: int | Int64s

    def __post_init__(self) -> None:
        _check_within("multiplier", self.multiplier, 1 - 2**31, 2**31 - 1)
        _check_within("shift", self.shift, 0, MOST_SHIFT)


def fixed_point(real: ArrayLike, bits: int = 15) -> FixedPoint:
    """Return the nearest multiplier of `bits` significant bits, and its shift.

    The relative error is at most 2^-bits. Halves go to the even multiplier; 0 is 0 * 2^0.

    >>> fixed_point(0.75, bits=4)
    FixedPoint(multiplier=12, shift=4)

    Args:
        real: Numbers of any shape, finite; each 0 or with 2^(bits-63) <= |real| < 2^bits, roughly:
            the shift must come out in 0 .. 62.
        bits: 1 .. 31; then 2^(bits-1) <= |multiplier| < 2^bits, or 0.

    Returns:
        Fields of the shape of `real`: ints for a scalar.

    Raises:
        ValueError: NaN, infinity, or a number too small or too large.
    """
    _check_within("bits", bits, 1, 31)
    real = np.asarray(real, np.float64)
    if not np.isfinite(real).all():
        raise ValueError(
            "a scale is NaN or infinite; fixed point takes finite numbers: look where it was made"
        )
    fraction, exponent = np.frexp(real)
    multiplier = np.rint(np.ldexp(fraction, bits)).astype(np.int64)
    carried = np.abs(multiplier) == 2**bits
    shift = np.where(multiplier == 0, 0, bits - exponent.astype(np.int64) - carried)
    multiplier = multiplier >> carried
    if ((shift < 0) | (shift > MOST_SHIFT)).any():
        worst = real.flat[np.argmax((shift < 0) | (shift > MOST_SHIFT))]
        raise ValueError(
            f"scale {worst:g} needs a shift outside 0 .. {MOST_SHIFT} to have {bits} significant "
            f"bits; scale its operands so that it is between {2.0 ** (bits - MOST_SHIFT):.3g} and "
            f"{2**bits - 1}"
        )
    if real.ndim == 0:
        return FixedPoint(int(multiplier), int(shift))
    return FixedPoint(multiplier, shift)


def multiply_half_up(x: ArrayLike, fixed: FixedPoint) -> Int64s:
    """Return shift_right_half_up(x * multiplier, shift): one rounding.

    Args:
        x: Integers; |x * multiplier| < 2^63, which |x| <= 2^32 guarantees.
        fixed: The factor, of a shape that broadcasts.

    Raises:
        ValueError: A product does not fit int64.
    """
    x, multiplier = _integers("x", x), _integers("multiplier", fixed.multiplier)
    limit = (2**63 - 1) // np.maximum(np.abs(multiplier), 1)
    beyond = (multiplier != 0) & ((x > limit) | (x < -limit))
    if beyond.any():
        raise ValueError(
            f"{np.count_nonzero(beyond)} products x * multiplier exceed int64, the first at "
            f"x = {np.broadcast_to(x, beyond.shape)[beyond][0]}; |x * multiplier| must be below "
            "2^63: saturate x first"
        )
    return shift_right_half_up(x * multiplier, fixed.shift)


# Random bits that every backend draws alike


def derive_key(*words: int) -> int:
    """Return a 64-bit key from words such as seed, round, layer; their order matters.

    Each word enters by one step of SplitMix64 (Steele, Lea and Flood, 2014): key = mix(key + word +
    0x9e3779b97f4a7c15 mod 2^64), from key = 0.

    Args:
        words: Each 0 .. 2^64 - 1.
    """
    key = 0
    for word in words:
        if not 0 <= word <= _MASK_64:
            raise ValueError(f"word {word} of a key is not in 0 .. 2^64 - 1; take it modulo 2^64")
        key = _mix((key + word + _GOLDEN_RATIO) & _MASK_64)
    return key


def _mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK_64
    return x ^ (x >> 31)


def random_bits(key: int, counters: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return 32 uniform bits per counter, the same for the same key on every machine.

    With k0, k1 the low and high half of `key`, all modulo 2^32:

        x = counter ^ k0;  x ^= x >> 16;  x *= 0x7feb352d
        x ^= x >> 15;      x += k1;       x *= 0x846ca68b;  x ^= x >> 16

    Source: Wellons' hash "lowbias32" (2018); a key before each of its two rounds is ours. Under one
    key different counters give different bits, as every step can be undone.

    Args:
        key: 0 .. 2^64 - 1, from `derive_key`: keys that differ in few bits must be mixed first.
        counters: uint32, of any shape.
    """
    counters = _uint32("counters", counters)
    x = np.array(counters, ndmin=1)  # a copy, which the steps below write
    x ^= np.uint32(key & 0xFFFFFFFF)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x += np.uint32(key >> 32)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x.reshape(counters.shape)


# Checks


def _integers(name: str, x: ArrayLike) -> Int64s:
    array: NDArray[Any] = np.asarray(x)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} is {array.dtype}; it must hold integers: round and convert first")
    if array.dtype == np.uint64 and array.size and array.max() > 2**63 - 1:
        raise ValueError(f"{name} reaches {array.max()}; it must be below 2^63: saturate it first")
    return array.astype(np.int64, copy=False)


def _uint32(name: str, x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    found = np.asarray(x)
    if found.dtype != np.uint32:
        raise ValueError(f"{name} are {found.dtype}; they must be uint32: convert them first")
    return found


def _check_within(name: str, value: ArrayLike, low: int, high: int) -> None:
    found = _integers(name, value)
    if found.size and not (low <= found.min() and found.max() <= high):
        worst = found.min() if found.min() < low else found.max()
        raise ValueError(f"{name} is {worst}; it must be in {low} .. {high}: choose another format")
