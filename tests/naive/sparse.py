"""Slow, obvious references for fedkit.sparse and fedkit.methods.fedtiny."""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray


def dense_topk(values: NDArray[np.float32], count: int) -> list[int]:
    """Sort everything: larger magnitude first, then lower index."""
    order = sorted(range(len(values)), key=lambda i: (-abs(float(values[i])), i))
    return sorted(order[:count])


def entropy_bytes(size: int, kept: int) -> float:
    if kept in (0, size):
        return 0.0
    p = kept / size
    return size * (-p * math.log2(p) - (1 - p) * math.log2(1 - p)) / 8


class Bits:
    """Bytes read bit by bit, the most significant bit of each first."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def bit(self) -> int:
        found = self.data[self.at // 8] >> (7 - self.at % 8) & 1
        self.at += 1
        return found

    def number(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = 2 * value + self.bit()
        return value


def decode_blob(blob: bytes, sizes: list[int]) -> list[list[bool]]:
    """Read the code of some layers as fedkit.wire.codec describes it, one bit at a time."""
    layers, at = [], 0
    for size in sizes:
        flags, at = decode_layer(blob, at, size)
        layers.append(flags)
    assert at == len(blob)
    return layers


def decode_layer(blob: bytes, at: int, size: int) -> tuple[list[bool], int]:
    """Return the flags of the layer whose code starts at a byte, and the byte after it."""
    form, complement = blob[at] % 128, blob[at] >= 128
    count = int.from_bytes(blob[at + 1 : at + 5], "little")
    assert count <= size
    at += 5
    if form == 127:
        end = at + math.ceil(size / 8)
        bits = Bits(blob[at:end])
        positions = [i for i in range(size) if bits.bit()]
        assert len(positions) == count
    else:
        assert form <= 32
        length = int.from_bytes(blob[at : at + 4], "little")
        assert length <= math.ceil(((size >> form) + count) / 8)
        at += 4
        end = at + length + math.ceil(count * form / 8)
        unary, remainders = Bits(blob[at : at + length]), Bits(blob[at + length : end])
        positions, last = [], -1
        for _ in range(count):
            quotient = 0
            while not unary.bit():
                quotient += 1
            last += 1 + (quotient << form) + remainders.number(form)
            positions.append(last)
    found = set(positions)
    return [(i in found) != complement for i in range(size)], end


def read_differences(blob: bytes, counts: list[list[int]], bits: int) -> list[float]:
    """Read differences as fedkit.wire.differences describes them, as float32 numbers.

    Args:
        blob: The code.
        counts: Values of each channel of each parameter.
        bits: Of a level.
    """
    assert list(blob[:2]) == [1, bits]
    scales = [struct.unpack_from("<f", blob, 2 + 4 * i)[0] for i in range(len(counts))]
    at, channels = 2 + 4 * len(counts), sum(map(len, counts))
    middle = at + math.ceil(3 * channels / 8)
    exponents, levels, values = Bits(blob[at:middle]), Bits(blob[middle:]), []
    for scale, rows in zip(scales, counts, strict=True):
        for count in rows:
            own = math.ldexp(scale, -exponents.number(3))
            read = [levels.number(bits) - (2 ** (bits - 1) - 1) for _ in range(count)]
            values += [float(np.float32(level * own)) for level in read]
    return values


def coded_bytes(flags: list[bool]) -> int:
    """Return how many bytes a layer takes: the best of all codes a writer may choose from."""
    complement = 2 * sum(flags) > len(flags)
    positions = [i for i, flag in enumerate(flags) if flag != complement]
    gaps = [p - last - 1 for p, last in zip(positions, [-1, *positions], strict=False)]
    unary = {k: sum((gap >> k) + 1 for gap in gaps) for k in range(33)}
    k = min(unary, key=lambda k: unary[k] + k * len(gaps))
    rice = 4 + math.ceil(unary[k] / 8) + math.ceil(k * len(gaps) / 8)
    return 5 + min(rice, math.ceil(len(flags) / 8))


def swap_layer(
    weights: list[float], mask: list[bool], gradient: dict[int, float], amount: int
) -> list[bool]:
    """Grow and drop one weight at a time."""
    before = [i for i, kept in enumerate(mask) if kept]
    grown = sorted(gradient, key=lambda i: (-abs(gradient[i]), i))[:amount]
    dropped = sorted(before, key=lambda i: (abs(weights[i]), i))[: len(grown)]
    return [(kept or i in grown) and i not in dropped for i, kept in enumerate(mask)]


def layer_mask(scores: list[float], count: int) -> list[bool]:
    """Keep the best of one layer by sorting."""
    best = sorted(range(len(scores)), key=lambda i: (-abs(scores[i]), i))[:count]
    return [i in best for i in range(len(scores))]


def global_masks(
    layers: dict[str, list[float]], count: int, whole: set[str], keep: dict[str, list[bool]]
) -> dict[str, list[bool]] | None:
    """Keep what must be, then the best of what is left, one weight at a time; None: it is more."""
    masks = {}
    for name, scores in layers.items():
        masks[name] = [name in whole or kept for kept in keep[name]]
        if not any(masks[name]):
            masks[name] = layer_mask(scores, 1)
    spare = count - sum(map(sum, masks.values()))
    if spare < 0:
        return None
    names = list(layers)
    order = sorted(
        (-abs(score), names.index(name), i)
        for name, scores in layers.items()
        for i, score in enumerate(scores)
        if not masks[name][i]
    )
    for _, layer, i in order[:spare]:
        masks[names[layer]][i] = True
    return masks
