"""The sparse wire format: kept values in one array, masks in as few bits as they need.

What is coded. A layer of n weights has n flags, in row-major order of the weight: of a mask, the
kept weights; of a mask change, the weights whose flag differs from the mask that both sides know
(old XOR new); of gradients, the weights that have one. A blob is the code of one layer after
another, in the model's order, with nothing between them or after the last one. Names and n are not
in it: both sides know the model. Values travel apart (`encode_values`, `encode_entries`).

The code of a layer. Its positions p[0] < p[1] < ... < p[m - 1] are the indices of the set flags or,
if the complement is coded, of those not set. Numbers are little-endian, without alignment.

    byte    form: k in 0..32, or 127 for packed bits; plus 128 if the complement is coded
    uint32  m, at most n
    if the form is 127:
      bits  packed part: n flags, set at the m positions
    if it is k:
      uint32  length of the unary part in bytes, at most ceil(((n >> k) + m) / 8)
      bits    unary part: per position, gap >> k zeros, then a one
      bits    remainder part: per position, the low k bits of its gap, highest bit first

The gap of p[i] is p[i] - p[i - 1] - 1, and that of p[0] is p[0]. Bits fill each byte from its most
significant to its least significant one; each of the three parts starts in a byte of its own and
is filled up to a whole byte with zeros, which a reader ignores. The packed part so takes
ceil(n / 8) bytes, the remainder part ceil(m * k / 8).

What a writer chooses; a reader takes every choice. The complement is coded if more than half of the
flags are set, k is that of the fewest bits in both parts together, and packed bits are sent if they
take no more bytes than the length and both parts of the Rice code.

Why. Gaps between positions of a random mask are geometric, for which a Rice code is within about
3 % of the entropy; it decodes with array operations alone. Packed bits bound what any mask costs.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import WireError
from fedkit.sparse import bits as flags
from fedkit.sparse.kept import KeptWeights, kept_weights
from fedkit.sparse.packed import PackedMasks, packed
from fedkit.sparse.state import Masks, Shapes, Weights
from fedkit.sparse.topk import Entries

Bytes = NDArray[np.uint8]

_PACKED = 127
_COMPLEMENT = 128
_HEADER = struct.Struct("<BI")
_LENGTH = struct.Struct("<I")


def encode_masks(masks: Masks, base: Masks | None = None) -> Bytes:
    """Code masks, uint8 [bytes]; against `base`, only the positions that differ are coded."""
    kept = packed(masks)
    if base is not None:
        kept = kept.merged(packed(base), np.bitwise_xor)
    parts = [_encode_flags(kept.bits[name], kept.size(name)) for name in kept]
    return np.frombuffer(b"".join(parts), np.uint8)


def decode_masks(blob: Bytes, shapes: Shapes, base: Masks | None = None) -> PackedMasks:
    """Invert `encode_masks`.

    Args:
        blob: uint8 [bytes].
        shapes: Shape per layer, in the order they were coded.
        base: The masks that the sender coded against, if any.

    Raises:
        WireError: Truncated, too long, or a position lies outside its layer; the layer is named.
    """
    bits, reader = {}, Reader(blob)
    for name, shape in shapes.items():
        bits[name] = _decode_flags(reader, math.prod(shape), name)
    reader.finish("masks")
    masks = PackedMasks(shapes, bits)
    return masks if base is None else masks.merged(packed(base), np.bitwise_xor)


def encode_values(weights: Weights, masks: Masks) -> NDArray[np.float32]:
    """Concatenate all weights in order, masked ones reduced to what is kept; float32 [kept]."""
    parts = list(kept_weights(weights, masks).kept.values())
    values: NDArray[np.float32] = np.concatenate(parts).astype(np.float32, copy=False)
    return values


def decode_values(values: NDArray[np.float32], shapes: Shapes, masks: Masks) -> KeptWeights:
    """Invert `encode_values`; the weights are views of `values`, pruned ones are 0.

    Raises:
        WireError: The number of values is not that of the kept weights, or one is not finite.
    """
    bits = packed(masks)
    kept = {name: bits.counts.get(name, math.prod(shape)) for name, shape in shapes.items()}
    if values.dtype != np.float32 or values.shape != (sum(kept.values()),):
        raise WireError(
            f"weights arrived as {values.dtype} {values.shape}; this model and mask need float32 "
            f"({sum(kept.values())},): sender and receiver disagree about model or mask"
        )
    if not np.isfinite(values).all():
        raise WireError(
            f"{np.sum(~np.isfinite(values))} of {len(values)} weights arrived as NaN or infinite; "
            "lower the learning rate of the sender"
        )
    parts = np.split(values, np.cumsum(list(kept.values()))[:-1])
    return KeptWeights(shapes, bits, dict(zip(shapes, parts, strict=True)))


def encode_entries(
    entries: Mapping[str, Entries], shapes: Shapes
) -> tuple[Bytes, NDArray[np.float32]]:
    """Code some entries of each layer: positions uint8 [bytes], values float32 [total]."""
    parts = []
    for name, chosen in entries.items():
        count = math.prod(shapes[name])
        parts.append(_encode_flags(flags.from_positions(chosen.indices, count), count))
    values = [chosen.values for chosen in entries.values()]
    joined = np.concatenate(values) if values else np.empty(0, np.float32)
    return np.frombuffer(b"".join(parts), np.uint8), joined


def decode_entries(blob: Bytes, values: NDArray[np.float32], shapes: Shapes) -> dict[str, Entries]:
    """Invert `encode_entries`; `shapes` holds the coded layers only, in their order.

    Raises:
        WireError: Positions and values do not fit each other or the layers.
    """
    reader, entries, start = Reader(blob), {}, 0
    for name, shape in shapes.items():
        indices = flags.positions(_decode_flags(reader, math.prod(shape), name))
        entries[name] = Entries(indices, values[start : start + len(indices)])
        start += len(indices)
    reader.finish("entries")
    if start != len(values) or not np.isfinite(values).all():
        raise WireError(
            f"{start} positions arrived with {len(values)} values; each position needs one finite "
            "value: the message was altered"
        )
    return entries


class Reader:
    """Take bytes from a blob, refusing to read past its end."""

    def __init__(self, blob: Bytes) -> None:
        if blob.dtype != np.uint8 or blob.ndim != 1:
            raise WireError(f"positions arrived as {blob.dtype} {blob.shape}; need uint8 [bytes]")
        self._blob, self._at = blob, 0

    def take(self, count: int, what: str) -> Bytes:
        """Return the next bytes; `what` they belong to is for the error."""
        if self._at + count > len(self._blob):
            raise WireError(
                f"{what} is truncated: {count} bytes expected at byte {self._at}, "
                f"{len(self._blob) - self._at} left"
            )
        self._at += count
        return self._blob[self._at - count : self._at]

    def finish(self, what: str) -> None:
        """Refuse bytes that are left."""
        if self._at != len(self._blob):
            raise WireError(f"{what} end at byte {self._at}, but {len(self._blob)} arrived")


def pack_bits(numbers: NDArray[np.integer[Any]], bits: int) -> bytes:
    """Pack the low bits of each number, the highest first, filled up to a whole byte with zeros."""
    each = (numbers[:, None] >> np.arange(bits - 1, -1, -1, dtype=numbers.dtype)) & 1
    return np.packbits(each.astype(np.uint8)).tobytes()


def unpack_bits(reader: Reader, count: int, bits: int, what: str) -> NDArray[np.int64]:
    """Invert `pack_bits`, int64 [count]; `what` they are is for the error."""
    size = count * bits
    each = np.unpackbits(reader.take((size + 7) // 8, what), count=size)
    numbers = np.zeros(count, np.int64)
    for bit in each.reshape(count, bits).T:
        numbers = 2 * numbers + bit
    return numbers


def _encode_flags(bits: Bytes, size: int) -> bytes:
    complement = 2 * flags.ones(bits) > size
    coded = flags.inverted(bits, size) if complement else bits
    positions = flags.positions(coded)
    gaps = np.diff(positions, prepend=-1) - 1
    k = _rice_parameter(gaps)
    rice_bytes = (int((gaps >> k).sum()) + len(gaps) + 7) // 8 + (len(gaps) * k + 7) // 8
    if rice_bytes + _LENGTH.size >= (size + 7) // 8:
        form, body = _PACKED, coded.tobytes()
    else:
        form, body = k, _encode_gaps(gaps, k)
    return _HEADER.pack(form + _COMPLEMENT * complement, len(positions)) + body


def _rice_parameter(gaps: NDArray[np.int64]) -> int:
    """Return the k of the shortest code; it lies next to log2 of the mean gap."""
    if len(gaps) == 0:
        return 0
    near = int(math.log2(gaps.mean() + 1))
    candidates = range(max(0, near - 2), near + 2)
    return min(candidates, key=lambda k: int((gaps >> k).sum()) + len(gaps) * (k + 1))


def _encode_gaps(gaps: NDArray[np.int64], k: int) -> bytes:
    ends = np.cumsum((gaps >> k) + 1)
    unary = np.zeros(int(ends[-1]) if len(ends) else 0, np.bool_)
    unary[ends - 1] = True
    unary_bytes = np.packbits(unary).tobytes()
    return _LENGTH.pack(len(unary_bytes)) + unary_bytes + pack_bits(gaps, k)


def _decode_flags(reader: Reader, size: int, name: str) -> Bytes:
    form, count = _HEADER.unpack(reader.take(_HEADER.size, name).tobytes())
    if count > size:
        raise WireError(f"{name} claims {count} positions; the layer has {size} weights")
    kind = form % _COMPLEMENT
    if kind == _PACKED:
        coded = flags.trimmed(reader.take((size + 7) // 8, name), size)
    else:
        coded = flags.from_positions(_decode_gaps(reader, count, kind, size, name), size)
    if flags.ones(coded) != count:
        raise WireError(f"{name} claims {count} positions, but holds {flags.ones(coded)}")
    return flags.inverted(coded, size) if form >= _COMPLEMENT else coded


def _decode_gaps(reader: Reader, count: int, k: int, size: int, name: str) -> NDArray[np.int64]:
    if k > 32:
        raise WireError(f"{name} uses Rice parameter {k}; at most 32 is legal")
    (length,) = _LENGTH.unpack(reader.take(_LENGTH.size, name).tobytes())
    longest = ((size >> k) + count + 7) // 8
    if length > longest:
        raise WireError(f"{name} claims a unary part of {length} bytes; it takes {longest} at most")
    ends = np.flatnonzero(np.unpackbits(reader.take(length, name)))
    if len(ends) != count:
        raise WireError(f"{name} claims {count} positions, but codes {len(ends)}")
    remainders = unpack_bits(reader, count, k, name)
    quotients = np.diff(ends, prepend=-1) - 1
    positions: NDArray[np.int64] = np.cumsum((quotients << k) + remainders + 1) - 1
    if count and positions[-1] >= size:
        raise WireError(f"{name} holds position {positions[-1]}; the layer has {size} weights")
    return positions
