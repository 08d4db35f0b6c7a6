"""Where the kernels find things: padded planes, pixels, and the taps of kept weights.

All offsets are in floats, for a tile of `lanes` examples; kernels/kernels.h tells the layout.
Nothing here depends on the batch, and only `taps` depends on the masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.plan.conv import Convolution
from fedkit.engine.plan.structure import Shape

Offsets = NDArray[np.int32]

TAP = np.dtype([("offset", np.int32), ("index", np.int32)])
"""`struct tap` of kernels.h."""

_FEW = 6
"""Input channels that are packed at a time in the backward pass: FEW of conv.h."""

_PART_BYTES = 256 * 1024
_PART_TILES = 16


@dataclass(frozen=True)
class Padding:
    """Planes [height, width] in a frame of zeros; their pixels start at (top, left)."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Phase:
    """Input pixels (stride * u + y, stride * v + x) of one (y, x): their taps are the same.

    Attributes:
        taps: Kernel positions (ky, kx) that reach these pixels, int64 [t, 2].
        shift: For each, offset in padded gradients of the output from a pixel's origin to the
            output it contributed to in channel 0, int64 [t].
        slot_in: Origins of the pixels of a part, int32.
        slot_out: Their places in the input's gradient, int32.
        slots: Pixels of one tile.
    """

    taps: NDArray[np.int64]
    shift: NDArray[np.int64]
    slot_in: Offsets
    slot_out: Offsets
    slots: int


@dataclass(frozen=True)
class Geometry:
    """One convolution between tensors of fixed shapes; parts have at most `part_tiles` tiles."""

    op: Convolution
    source: Shape
    target: Shape
    lanes: int
    part_tiles: int | None = None

    # Sizes

    @property
    def inputs(self) -> int:
        """Input channels of one group."""
        return self.source[0] // self.op.groups

    @property
    def full_taps(self) -> int:
        """Weights of one output channel if none were pruned."""
        return self.inputs * self.op.kernel[0] * self.op.kernel[1]

    @property
    def weights(self) -> int:
        """Weights of the layer if none were pruned."""
        return self.target[0] * self.full_taps

    @cached_property
    def padded_in(self) -> Padding:
        """Planes that the forward pass reads."""
        (_, height, width), (y, x) = self.source, self.op.padding
        return Padding(y, x, height + 2 * y, width + 2 * x)

    @cached_property
    def padded_out(self) -> Padding:
        """Planes of the output's gradient that the backward pass reads."""
        top, height = self._reach(0)
        left, width = self._reach(1)
        return Padding(top, left, height, width)

    def _reach(self, axis: int) -> tuple[int, int]:
        """Return the frame before the first output, and the padded extent, along one axis."""
        size, stride, outputs = self.source[1 + axis], self.op.stride[axis], self.target[1 + axis]
        first, last = 0, outputs - 1
        for pixel in range(min(stride, size)):
            reached = [shift for _, shift in self._reaching(axis, pixel)]
            furthest = (size - 1 - pixel) // stride
            first = min([first, *reached])
            last = max([last, furthest, *(shift + furthest for shift in reached)])
        return -first, last - first + 1

    def _reaching(self, axis: int, pixel: int) -> Iterator[tuple[int, int]]:
        """Yield (kernel position, output it contributed to) for input `pixel` < stride."""
        stride, padding = self.op.stride[axis], self.op.padding[axis]
        for position in range(self.op.kernel[axis]):
            distance = pixel + padding - position * self.op.dilation[axis]
            if distance % stride == 0:
                yield position, distance // stride

    @property
    def plane_in(self) -> int:
        """Floats between two channels of the padded inputs."""
        return self.padded_in.height * self.padded_in.width * self.lanes

    @property
    def plane_out(self) -> int:
        """Floats between two channels of the padded output gradients."""
        return self.padded_out.height * self.padded_out.width * self.lanes

    @property
    def tile_in(self) -> int:
        """Floats of the padded inputs of one tile."""
        return self.source[0] * self.plane_in

    @property
    def tile_few(self) -> int:
        """Floats of the padded inputs of one tile that the backward pass packs at a time."""
        return min(self.inputs, _FEW) * self.plane_in

    @property
    def tile_out(self) -> int:
        """Floats of the padded output gradients of one tile."""
        return self.target[0] * self.plane_out

    @cached_property
    def tiles_per_part(self) -> int:
        """Tiles that are worked off together: as many as stay in a core's cache."""
        most = _PART_BYTES // (4 * (self.tile_in + self.tile_out))
        return min(max(1, most), self.part_tiles or _PART_TILES)

    # Tables of pixels

    def _pixels(self, tile: int, row: int, height: int, width: int, step: int = 1) -> Offsets:
        """Return offsets of [tiles of a part][height][width] pixels, `row` and `step` in pixels."""
        tiles = np.arange(self.tiles_per_part)[:, None, None] * tile
        rows = np.arange(height)[:, None] * (row * self.lanes)
        columns = np.arange(width) * (step * self.lanes)
        return np.asarray(tiles + rows + columns, np.int32).reshape(-1)

    @cached_property
    def slot_in(self) -> Offsets:
        """Origins of the outputs of a part in the padded inputs."""
        stride_y, stride_x = self.op.stride
        row = stride_y * self.padded_in.width
        return self._pixels(self.tile_in, row, *self.target[1:], stride_x)

    @cached_property
    def slot_out(self) -> Offsets:
        """Places of the outputs of a part in channel 0 of the target."""
        channels, height, width = self.target
        tile = channels * height * width * self.lanes
        return self._pixels(tile, width, height, width)

    @property
    def line_length(self) -> int:
        """Outputs whose inputs and gradients both lie at constant steps: a row, or a plane."""
        _, height, width = self.target
        return height * width if self._lines_join else width

    @property
    def lines_per_tile(self) -> int:
        """Lines of one tile."""
        return 1 if self._lines_join else self.target[1]

    @property
    def _lines_join(self) -> bool:
        steps = self.op.stride[0] * self.padded_in.width == self.op.stride[1] * self.target[2]
        return steps and self.padded_out.width == self.target[2]

    @cached_property
    def lines(self) -> tuple[Offsets, Offsets]:
        """Where each line of a part starts in the padded inputs and in the padded gradients."""
        height = self.lines_per_tile
        row = self.op.stride[0] * self.padded_in.width
        pad = self.padded_out
        first = np.int32((pad.top * pad.width + pad.left) * self.lanes)
        line_in = self._pixels(self.tile_in, row, height, 1)
        return line_in, first + self._pixels(self.tile_out, pad.width, height, 1)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The input's pixels, split by their position within the stride."""
        stride_y, stride_x = self.op.stride
        _, height, width = self.source
        return tuple(
            self._phase(y, x)
            for y in range(min(stride_y, height))
            for x in range(min(stride_x, width))
        )

    def _phase(self, y: int, x: int) -> Phase:
        (channels, height, width), (stride_y, stride_x) = self.source, self.op.stride
        rows, columns = -(-(height - y) // stride_y), -(-(width - x) // stride_x)
        pad = self.padded_out
        reached = [
            (ky, kx, (dy + pad.top) * pad.width + dx + pad.left)
            for ky, dy in self._reaching(0, y)
            for kx, dx in self._reaching(1, x)
        ]
        table = np.array(reached, np.int64).reshape(-1, 3)
        tile = channels * height * width * self.lanes
        places = self._pixels(tile, stride_y * width, rows, columns, stride_x)
        return Phase(
            taps=table[:, :2],
            shift=table[:, 2] * self.lanes,
            slot_in=self._pixels(self.tile_out, pad.width, rows, columns),
            slot_out=places + np.int32((y * width + x) * self.lanes),
            slots=rows * columns,
        )

    # Tables of weights

    @cached_property
    def full_offset(self) -> Offsets:
        """Offsets of the taps of an output channel in group 0, if none were pruned [full_taps]."""
        pad, (kernel_y, kernel_x) = self.padded_in, self.op.kernel
        channels = np.arange(self.inputs)[:, None, None] * (pad.height * pad.width)
        rows = np.arange(kernel_y)[:, None] * (self.op.dilation[0] * pad.width)
        columns = np.arange(kernel_x) * self.op.dilation[1]
        return np.asarray((channels + rows + columns) * self.lanes, np.int32).reshape(-1)

    @property
    def table_bytes(self) -> int:
        """Bytes of all tables."""
        tables = [self.slot_in, self.slot_out, *self.lines, self.full_offset]
        for phase in self.phases:
            tables += [phase.slot_in, phase.slot_out]
        return sum(table.nbytes for table in tables)

    def dense_phase(self, phase: Phase) -> tuple[Offsets, Offsets]:
        """Return offsets and origins in the weights of a dense row's backward taps (1 group).

        The origins are for input channel 0; the next channel's lie kernel area further.
        """
        outputs = np.arange(self.target[0])[:, None]
        position = phase.taps[:, 0] * self.op.kernel[1] + phase.taps[:, 1]
        offset = (outputs * self.plane_out + phase.shift).astype(np.int32).reshape(-1)
        return offset, (outputs * self.full_taps + position).astype(np.int32).reshape(-1)


@dataclass(frozen=True)
class Taps:
    """Kept weights as rows of taps: `first` int32 [rows + 1], `tap` TAP [kept]."""

    first: Offsets
    tap: NDArray[np.void]


def forward_taps(geometry: Geometry, kept: NDArray[np.int64]) -> Taps:
    """Return the taps of each output channel; kept: flat positions in the weight, ascending."""
    output, position = np.divmod(kept, geometry.full_taps)
    group = output // (geometry.target[0] // geometry.op.groups)
    offset = geometry.full_offset[position] + group * (geometry.inputs * geometry.plane_in)
    return _taps(geometry.target[0], output, offset, np.arange(len(kept)))


def backward_taps(geometry: Geometry, kept: NDArray[np.int64]) -> Iterator[Taps]:
    """Yield, for each phase, the taps of each input channel."""
    kernel_y, kernel_x = geometry.op.kernel
    output, position = np.divmod(kept, geometry.full_taps)
    channel, place = np.divmod(position, kernel_y * kernel_x)
    group = output // (geometry.target[0] // geometry.op.groups)
    channel = channel + group * geometry.inputs
    # Stable: within an input channel the taps stay in the order of the outputs they read.
    by_channel = np.argsort(channel, kind="stable")
    for phase in geometry.phases:
        shift = np.full(kernel_y * kernel_x, -1, np.int64)
        shift[phase.taps[:, 0] * kernel_x + phase.taps[:, 1]] = phase.shift
        index = by_channel[shift[place[by_channel]] >= 0]
        offset = output[index] * geometry.plane_out + shift[place[index]]
        yield _taps(geometry.source[0], channel[index], offset, index)


def _taps(
    rows: int, row: NDArray[np.int64], offset: NDArray[np.int64], index: NDArray[np.int64]
) -> Taps:
    tap = np.empty(len(row), TAP)
    tap["offset"], tap["index"] = offset, index
    first = np.zeros(rows + 1, np.int32)
    np.cumsum(np.bincount(row, minlength=rows), out=first[1:])
    return Taps(first, tap)
