"""What training changed, in a few bits per value: differences that ShiftQuant rounds and packs.

What is coded. The values of a model in order: of a parameter under a mask the kept ones, of any
other all. A parameter under a mask has a channel per output, any other is one channel; a channel
that keeps nothing is not counted. With m = 2^(bits - 1) - 1, a value is level * scale *
2^-exponent: a level in -m .. m of its own, the exponent of its channel, the scale of its parameter,
as `fedkit.integers.format` has them with 8 groups. Shapes and masks are not in the code: both sides
know them, and they decide how long it is.

The code. Numbers are little-endian, each part starts in a byte of its own.

    byte     version, 1
    byte     bits, 2 .. 8
    float32  scale of each parameter
    bits     exponent of each channel, 3 bits
    bits     level + m of each value, `bits` bits

Bits fill each byte from its most significant one, as in `fedkit.wire.codec`; what is left of a
part's last byte is 0, which a reader ignores.

Why. Levels are the nearest ones, so a sender knows what rounding lost and can add it to what it
sends next; without that memory, random rounding would be the better one. More groups
than fit int8 products cost nothing here, since nobody multiplies what travels.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import WireError
from fedkit.integers.format import exponents, largest_level
from fedkit.sparse.rows import reduce_rows
from fedkit.sparse.state import Masks, Shapes
from fedkit.wire.codec import Bytes, Reader, pack_bits, unpack_bits

VERSION = 1
EXPONENT_BITS = 3
_GROUPS = 1 << EXPONENT_BITS
_HEADER = struct.Struct("<BB")
_SCALE = np.dtype("<f4")

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]


def encode_differences(values: Floats, shapes: Shapes, masks: Masks, bits: int) -> Bytes:
    """Round values to a few bits each, uint8 [bytes].

    Args:
        values: float32 [values], in order; finite.
        shapes: Shape per parameter, in the same order.
        masks: Of some of them.
        bits: 2 .. 8.

    Raises:
        QuantizationError: The bits are others.
        WireError: A value is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise WireError(
            f"{np.sum(~np.isfinite(values))} of {len(values)} differences to send are NaN or "
            "infinite, which have no level; lower lr (--lr)"
        )
    most = largest_level(bits)
    channels = list(_channels(shapes, masks))
    parts = np.split(values, np.cumsum([counts.sum() for counts in channels])[:-1])
    coded = [_round(*part, most) for part in zip(parts, channels, strict=True)]
    scales = np.array([scale for scale, _, _ in coded], _SCALE)
    shifts, levels = (np.concatenate([part[i] for part in coded]) for i in (1, 2))
    packed = pack_bits(shifts, EXPONENT_BITS) + pack_bits(levels, bits)
    return np.frombuffer(_HEADER.pack(VERSION, bits) + scales.tobytes() + packed, np.uint8)


def _round(
    values: Floats, counts: Counts, most: int
) -> tuple[np.float32, NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the scale, the exponent per channel, and per value the nearest level, plus m."""
    ranges = reduce_rows(np.maximum, np.abs(values), counts)
    # Never denormal: a scale that is rounded to 0 would stand for nothing.
    scale = max(np.float32(float(ranges.max(initial=0)) / most), np.finfo(np.float32).tiny)
    shifts = exponents(ranges, _GROUPS)
    levels = np.rint(values / np.repeat(np.ldexp(np.float64(scale), -shifts.astype(int)), counts))
    return scale, shifts, (np.clip(levels, -most, most) + most).astype(np.uint8)


def decode_differences(blob: Bytes, shapes: Shapes, masks: Masks, bits: int) -> Floats:
    """Invert `encode_differences` but for the rounding: off by half a channel's scale at most.

    Args:
        blob: uint8 [bytes].
        shapes: Shape per parameter, in the order they were coded.
        masks: Those of the sender.
        bits: What the sender should have used.

    Returns:
        float32 [values]; infinite where the sender's numbers are too large.

    Raises:
        WireError: Of another version or width, truncated, too long, or a number is out of range.
    """
    reader, most, channels = Reader(blob), largest_level(bits), list(_channels(shapes, masks))
    found = _HEADER.unpack(reader.take(_HEADER.size, "differences").tobytes())
    if found != (VERSION, bits):
        raise WireError(
            f"differences are of version {found[0]} in {found[1]} bits; need version {VERSION} in "
            f"{bits} bits: give server and device the same fedkit and the same uplink_bits"
        )
    scales = reader.take(len(channels) * _SCALE.itemsize, "scales").view(_SCALE)
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise WireError("a scale of the differences is not positive and finite; it was altered")
    counts = np.concatenate([np.empty(0, np.int64), *channels])
    shifts = unpack_bits(reader, len(counts), EXPONENT_BITS, "exponents")
    levels = unpack_bits(reader, int(counts.sum()), bits, "levels") - most
    reader.finish("differences")
    if levels.max(initial=0) > most:
        raise WireError(
            f"a level of the differences is {levels.max()}; {bits} bits hold -{most} .. {most}: "
            "the message was altered"
        )
    per_channel = np.repeat(scales.astype(np.float64), [len(each) for each in channels])
    values = levels * np.repeat(np.ldexp(per_channel, -shifts), counts)
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)


def _channels(shapes: Shapes, masks: Masks) -> Iterator[Counts]:
    """Yield how many values each channel of each parameter has."""
    for name, shape in shapes.items():
        if name in masks:
            kept = masks[name].reshape(shape[0], -1).sum(axis=1)
            yield kept[kept > 0]
        else:
            yield np.array([math.prod(shape)])
