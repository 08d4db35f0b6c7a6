"""Lay out tensors and pack weights for the C kernels in `c99/`; `c99/ek.h` says what they read.

Weights come as [out, in of the group, kernel height, kernel width] int8. An emitter makes a
`Planes` for every activation, with the halo that its readers need, asks `distances` (or a `Phases`
where a window has a stride) where the taps lie, and packs each layer by `sparse`, `stream` or
`dense`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ExportError
from fedkit.graph.ir import Window

Int8s = NDArray[np.int8]
Int32s = NDArray[np.int32]

SLACK = 64
"""Bytes that kernels may read past a tensor: EK_SLACK."""

QUAD = np.dtype([("at", "<i4", 4), ("weight", "i1", 4)])
PAIR = np.dtype([("at", "<i4", 2), ("weight", "<i2", 2)])
FILTER = np.dtype(
    [*((name, "<u2") for name in ("channel", "quads", "pairs")), ("run", "u1"), ("near", "u1")]
)

_OUT_BLOCK = 4  # output channels that the dense kernel computes together
_SUM_LIMIT = 128  # 255 * 128 < 2^15: what weights of one sign may add up to in int16
_RUNS = (16, 12, 9, 8, 6, 4)
_SKIP = 255


# Layouts


@dataclass(frozen=True)
class Planes:
    """Where a tensor's bytes are: `ek_planes`.

    Attributes:
        halo_y: Rows of halo above and below.
        halo_x: Columns of halo left and right.
        zero: Zero point + 128.
    """

    channels: int
    height: int
    width: int
    halo_y: int = 0
    halo_x: int = 0
    zero: int = 0

    @property
    def row(self) -> int:
        """Bytes from a pixel to the one below."""
        return self.width + self.halo_x

    @property
    def plane(self) -> int:
        """Bytes from a channel to the next."""
        return (self.height + self.halo_y) * self.row

    @property
    def has_no_halo(self) -> bool:
        """Whether values are all that it holds."""
        return self.halo_y == self.halo_x == 0

    @property
    def lead(self) -> int:
        """Bytes of halo before the first pixel."""
        return self.halo_y * self.row + self.halo_x

    @property
    def size(self) -> int:
        """Bytes of the whole tensor."""
        return self.lead + self.channels * self.plane


def distances(planes: Planes, window: Window) -> Int32s:
    """Return how far each tap lies from the pixel it contributes to.

    Args:
        planes: The input.
        window: Of stride 1.

    Returns:
        int32 [channels, kernel height, kernel width], bytes.

    Raises:
        ExportError: The window has a stride, or reaches beyond the halo.
    """
    if window.stride != (1, 1):
        raise ExportError(
            f"a window has stride {window.stride}; the C kernels take 1: split the tensor first"
        )
    need_y, need_x = _halo(planes, window)
    if need_y > planes.halo_y or need_x > planes.halo_x:
        raise ExportError(
            f"a window needs a halo of {need_y} rows and {need_x} columns, but the tensor has "
            f"{planes.halo_y} and {planes.halo_x}: give it the largest that a reader needs"
        )
    rows, columns = _reach(window)
    rows, columns = rows - window.padding[0], columns - window.padding[2]
    channels = np.arange(planes.channels) * planes.plane
    at = channels[:, None, None] + rows[:, None] * planes.row + columns
    return at.astype(np.int32)


def halo(planes: Planes, window: Window) -> tuple[int, int]:
    """Return the rows and columns of halo that a reader of `planes` needs.

    Args:
        planes: The tensor read; its own halo does not matter.
        window: The reader's, of any stride: with one, it reads through a `Phases`.
    """
    if window.stride == (1, 1):
        return _halo(planes, window)
    return Phases(planes, window, 0).halo()


def _halo(planes: Planes, window: Window) -> tuple[int, int]:
    top, _, left, _ = window.padding
    rows, columns = _reach(window)
    height, width = window.output(planes.height, planes.width)
    below = height - 1 + int(rows[-1]) - top - (planes.height - 1)
    right = width - 1 + int(columns[-1]) - left - (planes.width - 1)
    return max(top, below, 0), max(left, right, 0)


def _reach(window: Window) -> tuple[Int32s, Int32s]:
    rows = np.arange(window.kernel[0], dtype=np.int32) * window.dilation[0]
    columns = np.arange(window.kernel[1], dtype=np.int32) * window.dilation[1]
    return rows, columns


@dataclass(frozen=True)
class Phases:
    """A tensor taken apart for a window with a stride: `ek_phases`.

    Attributes:
        source: The tensor.
        window: What reads it. Other windows of the same stride, output size and no larger
            padding or reach can read the same phases.
        row: `row` of what the readers write; with an equal one they run over rows at once.
    """

    source: Planes
    window: Window
    row: int

    @property
    def planes(self) -> Planes:
        """The phases, which have no halo."""
        step_y, step_x = self.window.stride
        rows, columns = _reach(self.window)
        height, width = self.window.output(self.source.height, self.source.width)
        return Planes(
            self.source.channels * step_y * step_x,
            height + int(rows[-1]) // step_y,
            max(self.row, width + int(columns[-1]) // step_x),
            zero=self.source.zero,
        )

    def halo(self) -> tuple[int, int]:
        """Return the rows and columns of halo that the source must have."""
        top, _, left, _ = self.window.padding
        step_y, step_x = self.window.stride
        _, columns = _reach(self.window)
        _, width = self.window.output(self.source.height, self.source.width)
        below = self.planes.height * step_y - top - self.source.height
        right = (width - 1) * step_x + int(columns[-1]) - left - (self.source.width - 1)
        return max(top, below, 0), max(left, right, 0)

    def distances(self, window: Window) -> Int32s:
        """Return how far each tap lies from the pixel it contributes to.

        Returns:
            int32 [channels of the source, kernel height, kernel width], bytes.

        Raises:
            ExportError: `window` does not fit these phases, or the source's halo is too small.
        """
        self._check(window)
        step_y, step_x = window.stride
        rows, columns = _reach(window)
        rows = rows + (self.window.padding[0] - window.padding[0])
        columns = columns + (self.window.padding[2] - window.padding[2])
        planes = self.planes
        phase = (rows % step_y)[:, None] * step_x + columns % step_x
        within = (rows // step_y)[:, None] * planes.row + columns // step_x
        first = np.arange(self.source.channels)[:, None, None] * step_y * step_x
        at: Int32s = ((first + phase) * planes.plane + within).astype(np.int32)
        return at

    def _check(self, window: Window) -> None:
        mine, other = self.window, window
        size = self.source.height, self.source.width
        shift = mine.padding[0] - other.padding[0], mine.padding[2] - other.padding[2]
        reach = [int(axis[-1]) for axis in _reach(mine)]
        needed = [int(axis[-1]) + by for axis, by in zip(_reach(other), shift, strict=True)]
        fits = all(a >= b for a, b in zip(reach, needed, strict=True)) and min(shift) >= 0
        if mine.stride != other.stride or mine.output(*size) != other.output(*size) or not fits:
            raise ExportError(f"{other} cannot read phases made for {mine}: make others for it")
        need_y, need_x = self.halo()
        if need_y > self.source.halo_y or need_x > self.source.halo_x:
            raise ExportError(
                f"splitting needs a halo of {need_y} rows and {need_x} columns, but the tensor "
                f"has {self.source.halo_y} and {self.source.halo_x}: give it the largest that a "
                "reader needs"
            )


# Constants


def folded_bias(bias: Int32s, weights: Int8s, zero: int) -> Int32s:
    """Return the bias with the input's zero point in it, for inputs and halos as bytes.

    Args:
        bias: int32 [out].
        weights: int8 [out, ...].
        zero: Zero point of the input + 128.

    Returns:
        int32 [out].

    Raises:
        ExportError: A sum could leave int32.
    """
    flat = weights.reshape(len(weights), -1).astype(np.int64)
    folded = bias.astype(np.int64) - zero * flat.sum(1)
    largest = np.maximum(np.abs(bias), np.abs(folded)) + 255 * np.abs(flat).sum(1)
    if largest.size and largest.max() >= 2**31:
        raise ExportError(
            f"output channel {int(largest.argmax())} may sum up to {int(largest.max())}, beyond "
            "32 bits; make the layer narrower or its bias smaller"
        )
    return np.asarray(folded, np.int32)


def sum_offset(scales: tuple[int, int], zeros: tuple[int, int], shift: int) -> int:
    """Return `offset` of an `ek_sum`: half a step less what the inputs' zero points contribute.

    >>> sum_offset((1024, 512), (0, 128), 10)
    -65024

    Args:
        scales: Of inputs a and b, 0 .. 2^20 - 1.
        zeros: Their zero points + 128.
        shift: 1 .. 30.
    """
    return (1 << (shift - 1)) - scales[0] * zeros[0] - scales[1] * zeros[1]


# Sparse weights


@dataclass(frozen=True)
class Sparse:
    """Arrays of an `ek_sparse_conv`.

    Attributes:
        filters: FILTER [out], those with few weights first.
        quads: QUAD, in the order of the filters.
        pairs: PAIR, likewise.
    """

    filters: NDArray[Any]
    quads: NDArray[Any]
    pairs: NDArray[Any]


def sparse(weights: Int8s, at: Int32s, near: NDArray[np.uint8] | None = None) -> Sparse:
    """Pack the weights that are not zero for `ek_conv_sparse`.

    Two weights whose products fit int16 in sum make a narrow pair: always if their signs differ,
    else if their magnitudes are at most 128 together. Two narrow pairs make a quad; what is left
    makes pairs, which cost 1.4 times as much per weight.

    Args:
        weights: [out, in of a group, kernel height, kernel width] int8, above -128.
        at: [in of all groups, kernel height, kernel width], from `distances`.
        near: uint8 [out], from `requant.near`; without it no float requantises.
    """
    if near is None:
        near = np.zeros(len(weights), np.uint8)
    grouped = [
        (channel, *_grouped([(int(place[k]), int(weight[k])) for k in np.flatnonzero(weight)]))
        for channel, (weight, place) in enumerate(_by_filter(weights, at))
    ]
    grouped.sort(key=lambda one: (len(one[1]), len(one[2])))
    filters = [
        (channel, len(four), len(two), _run(four), near[channel]) for channel, four, two in grouped
    ]
    quads = [_columns(taps) for _, four, _ in grouped for taps in four]
    pairs = [_columns(taps) for _, _, two in grouped for taps in two]
    return Sparse(np.array(filters, FILTER), np.array(quads, QUAD), np.array(pairs, PAIR))


Tap = tuple[int, int]
"""Distance, weight."""


def _by_filter(weights: Int8s, at: Int32s) -> Iterator[tuple[Int8s, Int32s]]:
    """Yield the weights and distances of each output channel, flat."""
    out, size = weights.shape[:2]
    groups = len(at) // size
    for number, weight in enumerate(weights):
        group = number // (out // groups)
        yield weight.ravel(), at[group * size : (group + 1) * size].ravel()


def _columns(taps: Sequence[Tap]) -> tuple[list[int], list[int]]:
    return [place for place, _ in taps], [weight for _, weight in taps]


def _grouped(taps: list[Tap]) -> tuple[list[list[Tap]], list[list[Tap]]]:
    """Return quads and pairs."""
    narrow, rest = _narrow_pairs(taps)
    if len(rest) % 2:
        place = rest[-1][0]
        if len(narrow) % 2:
            narrow.append([rest.pop(), (place, 0)])
        else:
            rest.append((place, 0))
    elif len(narrow) % 2:
        rest += narrow.pop()
    quads = [a + b for a, b in zip(narrow[::2], narrow[1::2], strict=True)]
    return quads, [rest[i : i + 2] for i in range(0, len(rest), 2)]


def _narrow_pairs(taps: list[Tap]) -> tuple[list[list[Tap]], list[Tap]]:
    """Return as many narrow pairs as there are, and the taps left, all of one sign."""
    signs = [sorted((t for t in taps if (t[1] > 0) == up), key=_magnitude) for up in (True, False)]
    few, many = sorted(signs, key=len)
    pairs: list[list[Tap]] = []
    rest: list[Tap] = []
    while len(many) >= len(few) + 2:
        if _magnitude(many[0]) + _magnitude(many[1]) <= _SUM_LIMIT:
            pairs.append([many.pop(0), many.pop(0)])
        else:
            rest.append(many.pop())
    pairs += [[a, b] for a, b in zip(few, many, strict=False)]
    return pairs, rest + many[len(few) :]


def _magnitude(tap: Tap) -> int:
    return abs(tap[1])


def _run(quads: list[list[Tap]]) -> int:
    """Return how many quads in a row can be summed in int16."""
    weights = np.array([_columns(quad)[1] for quad in quads], np.int64).reshape(-1, 2, 2)
    for run in _RUNS:
        if run > len(weights) >= 1 or not len(weights):
            continue
        starts = np.arange(0, len(weights), run)
        sums = [
            np.add.reduceat(np.maximum(sign * weights, 0).sum(2), starts).max() for sign in (1, -1)
        ]
        if max(sums) <= _SUM_LIMIT:
            return run
    return 1


def stream(weights: Int8s, bits: int = 8) -> NDArray[np.uint8]:
    """Pack the weights that are not zero for `ek_conv_stream`, in as few bytes.

    Args:
        weights: [out, in of a group, kernel height, kernel width] int8, in [-7, 7] for 4 bits.
        bits: 8 or 4.

    Returns:
        The stream, uint8.

    Raises:
        ExportError: A weight does not fit, or an output channel has more than 65535.
    """
    most = 2 ** (bits - 1) - 1
    if weights.size and np.abs(weights.astype(int)).max() > most:
        raise ExportError(f"a weight is beyond {most}; {bits} bits do not hold it: use 8")
    parts: list[int] = []
    for weight in weights.reshape(len(weights), -1):
        kept = np.flatnonzero(weight)
        if len(kept) > 0xFFFF:
            raise ExportError(f"an output channel has {len(kept)} weights; a stream holds 65535")
        parts += [len(kept) & 255, len(kept) >> 8]
        for gap in np.diff(kept, prepend=-1).tolist():
            skips = (gap - 1) // _SKIP
            parts += [0] * skips + [gap - skips * _SKIP]
        parts += _values(weight[kept].tolist(), bits)
    return np.array(parts, np.uint8)


def stream_scratch(weights: Int8s) -> int:
    """Return the bytes of scratch that `ek_conv_stream` needs: EK_STREAM_SCRATCH."""
    return 8 * (1 + max(int(np.count_nonzero(weight)) for weight in weights))


def _values(weights: list[int], bits: int) -> list[int]:
    if bits == 8:
        return [weight & 255 for weight in weights]
    weights = weights + [0] * (len(weights) % 2)
    return [a & 15 | (b & 15) << 4 for a, b in zip(weights[::2], weights[1::2], strict=True)]


# Dense weights


@dataclass(frozen=True)
class Dense:
    """Arrays of an `ek_dense_conv`.

    Attributes:
        weights: int8 [out / 4, taps / 2, 4, 2], both rounded up.
        at: int32 [taps, rounded up to even].
        taps: Weights of one output channel.
    """

    weights: Int8s
    at: Int32s
    taps: int

    @property
    def scratch(self) -> int:
        """Bytes of scratch where the kernel is vectorised: EK_DENSE_SCRATCH."""
        return len(self.at) // 2 * (4 * 64 + 16)


def dense(weights: Int8s, at: Int32s) -> Dense:
    """Pack all weights for `ek_conv_dense`; arguments as for `sparse`, of one group."""
    out = len(weights)
    taps = weights[0].size
    odd, missing = taps % 2, -out % _OUT_BLOCK
    flat = np.pad(weights.reshape(out, taps), ((0, missing), (0, odd)))
    blocks = flat.reshape(-1, _OUT_BLOCK, (taps + odd) // 2, 2).transpose(0, 2, 1, 3)
    places = np.pad(at.ravel(), (0, odd), mode="edge")
    return Dense(np.ascontiguousarray(blocks), places, taps)


@dataclass(frozen=True)
class Full:
    """Arrays of an `ek_full_conv`.

    Attributes:
        weights: int8 [out, taps rounded up to 4]; of every four the middle two are exchanged.
        at: int32 [taps rounded up to 4].
        taps: Weights of one output channel.
    """

    weights: Int8s
    at: Int32s
    taps: int

    @property
    def scratch(self) -> int:
        """Bytes of scratch: EK_FULL_SCRATCH."""
        return 8 * len(self.at)


def full(weights: Int8s, at: Int32s) -> Full:
    """Pack all weights for `ek_conv_full`; arguments as for `sparse`, of one group."""
    taps = weights[0].size
    missing = -taps % 4
    flat = np.pad(weights.reshape(len(weights), taps), ((0, 0), (0, missing)))
    mixed = flat.reshape(len(flat), -1, 4)[:, :, [0, 2, 1, 3]].reshape(flat.shape)
    return Full(np.ascontiguousarray(mixed), np.pad(at.ravel(), (0, missing), mode="edge"), taps)


def pairs_of(terms: int) -> int:
    """Return EK_PAIRS_OF."""
    return -(-terms // 2)


def packed_bytes(rows: int, terms: int) -> int:
    """Return what packed weights of a product of activations take: EK_PACKED."""
    return -(-rows // 4) * (16 * pairs_of(terms) + 16)


def multiply_scratch(channels: int, terms: int) -> int:
    """Return what `ek_multiply` needs: EK_MULTIPLY_SCRATCH."""
    return packed_bytes(channels, terms) + 72 * pairs_of(terms)
