"""Convolutions and linear layers in float32: on kept weights only, or dense where most are kept."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Container, Iterator, Sequence
from ctypes import POINTER, byref, c_int32, c_void_p

import numpy as np

from fedkit.engine.kernels import native
from fedkit.engine.kernels.network import Layer, Network, Parameters
from fedkit.engine.kernels.structs import Array, Tensors, part, pointer
from fedkit.engine.ops.conv_integer import INTEGER
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.conv import Conv, Convolution, reads_plain
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.geometry import Padding
from fedkit.engine.sparse.float_op import Call, FloatOp, Floats, Mode, SummedVector, Workspace

_SUMS_FLOATS = 3


class CMap(ctypes.Structure):
    """`struct map` of kernels.h."""

    _fields_ = (
        ("first", c_void_p),
        ("tap", c_void_p),
        ("offset", c_void_p),
        ("from_", c_void_p),
        ("matrix", c_void_p),
        ("slot_in", c_void_p),
        ("slot_out", c_void_p),
        ("rows", c_int32),
        ("taps", c_int32),
        ("from_step", c_int32),
        ("slots", c_int32),
    )


class CConv(ctypes.Structure):
    """`struct conv` of kernels.h."""

    _fields_ = (
        ("source", POINTER(native.CTensor)),
        ("target", POINTER(native.CTensor)),
        ("values", c_void_p),
        ("bias", c_void_p),
        ("used_in", c_void_p),
        ("used_out", c_void_p),
        ("full_offset", c_void_p),
        ("line_in", c_void_p),
        ("line_out", c_void_p),
        ("forward", CMap),
        ("backward", POINTER(CMap)),
        ("in_", native.CPadding),
        ("out", native.CPadding),
        ("in_height", c_int32),
        ("in_width", c_int32),
        ("out_height", c_int32),
        ("out_width", c_int32),
        ("lines", c_int32),
        ("line_length", c_int32),
        ("phases", c_int32),
        ("tiles", c_int32),
        ("tiles_per_part", c_int32),
        ("groups", c_int32),
        ("full_taps", c_int32),
        ("stride", c_int32),
        ("direct", c_int32),
        ("statistics", c_int32),
        ("accumulate", c_int32),
        ("finish", c_int32),
    )


class FloatConv(FloatOp[Convolution]):
    """Works off the batch part by part, so that a part's planes stay in a core's cache."""

    by_tiles = takes_moments = True

    def __init__(self, op: Convolution, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        self._layer = work.network.layers[number]
        self.tiles_per_part = self._layer.geometry.tiles_per_part
        self.takes_ranges = self.tiles_per_part == 1
        self.struct = conv_struct(self._layer, work.tensors, work.network.parameters)
        self.struct.direct = reads_plain(work.plan, op)
        self.struct.statistics = work.normalises(number)
        if work.mode == "train":
            maps, self._keep = backward_maps(self._layer, work.transposed)
            self.struct.backward, self.struct.phases = maps, len(maps)
            self._maps = maps

    @staticmethod
    def scratch_floats(network: Network, number: int, mode: Mode, stored: Container[int]) -> int:
        """See `FloatOp.scratch_floats`: what `part_of` and `part_back` of conv.h place."""
        layer, plan = network.layers[number], network.plan
        geometry = layer.geometry
        tiles, packs = geometry.tiles_per_part, not reads_plain(plan, geometry.op)
        sums = max(geometry.source[0], geometry.target[0]) * _SUMS_FLOATS * geometry.lanes
        forward = tiles * geometry.tile_in if packs else 0
        if mode != "train":
            return sums + forward
        sums += 2 * geometry.target[0] * geometry.lanes
        few_bits = geometry.op.source in stored
        values = few_bits and (layer.dense or tiles > 1)
        back = tiles * geometry.tile_out
        if values:
            back += tiles * math.prod(geometry.source) * geometry.lanes
        if packs or (few_bits and not values):
            back += tiles * geometry.tile_few
        plane = math.prod(geometry.source[1:]) * geometry.lanes if few_bits else 0
        return sums + max(forward, back + plane)

    @staticmethod
    def overwrites(network: Network, number: int) -> bool:
        """See `FloatOp.overwrites`: if all of a part is packed before results are written."""
        return not reads_plain(network.plan, network.layers[number].geometry.op)

    def resize(self, work: Workspace) -> None:
        """See `FloatOp.resize`."""
        self.struct.tiles = work.tiles

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        parts = self._parts(work)
        return work.shared(work.kernels.conv_forward, parts, byref(self.struct), scratch=True)

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        for contribution in given:
            self.struct.accumulate = contribution.accumulate
            self.struct.finish = contribution.finish
        if self._layer.dense and given:
            yield work.alone(work.kernels.conv_transpose, byref(self.struct))
        kernel = work.kernels.conv_backward
        yield work.summed(kernel, self._parts(work), byref(self.struct), sums=self.sums(work))

    def sums(self, work: Workspace) -> list[SummedVector]:
        """Return where the gradients of weight and bias lie, if they are wanted."""
        return [self._sum(work, name) for name in (self.op.weight, self.op.bias)]

    def _sum(self, work: Workspace, name: str | None) -> SummedVector:
        if name is None or not work.trains(name):
            return SummedVector(None, 0)
        gradient = work.network.parameters.part(name, work.gradient)
        return SummedVector(pointer(gradient), len(gradient))

    def full_gradient(self, work: Workspace, rows: int) -> Iterator[Floats]:
        """See `FloatOp.full_gradient`."""
        channels, taps = self._layer.geometry.target[0], self._layer.geometry.full_taps
        room, parts = np.empty((min(rows, channels), taps), np.float32), self._parts(work)
        for first in range(0, channels, rows):
            found = room[: min(rows, channels - first)]
            found[:] = 0
            self.add_full_gradient(work, found, first, 0, parts)
            yield found

    def add_full_gradient(
        self, work: Workspace, to: Floats, row: int, first: int, last: int
    ) -> None:
        """See `FloatOp.add_full_gradient`."""
        source, target = self._layer.geometry.source[0], self._layer.geometry.target[0]
        struct = CConv.from_buffer_copy(self.struct)
        read, packed = np.ones(source, np.uint8), np.zeros(target, np.uint8)
        packed[row : row + len(to)] = 1
        struct.used_in, struct.used_out = pointer(read), pointer(packed)
        work.kernels.conv_full_gradient(
            *(byref(struct), row, row + len(to), first, last),
            *(work.scratch_of(0), c_void_p(pointer(to))),
        )

    def _parts(self, work: Workspace) -> int:
        return -(-work.tiles // self.tiles_per_part)


def conv_struct(layer: Layer, tensors: Tensors, parameters: Parameters) -> CConv:
    """Return the struct of a convolution, without its backward maps and what a mode decides."""
    geometry = layer.geometry
    op, (line_in, line_out) = geometry.op, geometry.lines
    values = parameters.part(op.weight, parameters.values)
    return CConv(
        source=ctypes.pointer(tensors[op.source]),
        target=ctypes.pointer(tensors[op.target]),
        values=pointer(values),
        bias=part(parameters, op.bias, parameters.values),
        used_in=pointer(layer.used_in),
        used_out=pointer(layer.used_out),
        full_offset=pointer(geometry.full_offset),
        line_in=pointer(line_in),
        line_out=pointer(line_out),
        forward=_forward_map(layer, values),
        in_=_padding(geometry.padded_in),
        out=_padding(geometry.padded_out),
        in_height=geometry.source[1],
        in_width=geometry.source[2],
        out_height=geometry.target[1],
        out_width=geometry.target[2],
        lines=geometry.lines_per_tile,
        line_length=geometry.line_length,
        tiles_per_part=geometry.tiles_per_part,
        groups=op.groups,
        full_taps=geometry.full_taps,
        stride=op.stride[1] * geometry.lanes,
    )


def _padding(padding: Padding) -> native.CPadding:
    return native.CPadding(padding.top, padding.left, padding.height, padding.width)


def _forward_map(layer: Layer, values: Array) -> CMap:
    geometry = layer.geometry
    return CMap(
        first=None if layer.dense else pointer(layer.forward.first),
        tap=pointer(layer.forward.tap),
        offset=pointer(geometry.full_offset),
        matrix=pointer(values),
        slot_in=pointer(geometry.slot_in),
        slot_out=pointer(geometry.slot_out),
        rows=geometry.target[0],
        taps=geometry.full_taps,
        slots=geometry.target[1] * geometry.target[2],
    )


def backward_maps(layer: Layer, transposed: Floats) -> tuple[ctypes.Array[CMap], list[Array]]:
    """Return the maps from padded gradients of the outputs to those of the inputs, per phase.

    Args:
        layer: The layer.
        transposed: Room for a dense layer's weights in the order of these maps.

    Returns:
        The maps, and arrays that must live as long as they do.
    """
    geometry, phases = layer.geometry, layer.geometry.phases
    maps, keep, begin = (CMap * len(phases))(), list[Array](), 0
    for number, phase in enumerate(phases):
        shared = {
            "slot_in": pointer(phase.slot_in),
            "slot_out": pointer(phase.slot_out),
            "rows": geometry.source[0],
            "slots": phase.slots,
        }
        if not layer.dense:
            taps = layer.backward[number]
            first, tap = pointer(taps.first), pointer(taps.tap)
            maps[number] = CMap(first=first, tap=tap, **shared)
            continue
        offset, origin = geometry.dense_phase(phase)
        keep += [offset, origin]
        maps[number] = CMap(
            offset=pointer(offset),
            from_=pointer(origin),
            matrix=pointer(transposed[begin:]),
            taps=len(offset),
            from_step=geometry.op.kernel[0] * geometry.op.kernel[1],
            **shared,
        )
        begin += len(offset) * geometry.source[0]
    return maps, keep


_GROUPED = Conv(1, 2, "w", "b", (3, 2), (2, 1), (1, 1), (1, 2), 2)

FAMILY = Family(
    Conv,
    (
        Example(_GROUPED, ((3, 5, 4), (4, 5, 4), (6, 3, 4)), {"w": (6, 2, 3, 2), "b": (6,)}),
        Example(
            Conv(1, 2, "w", None, (1, 1), (1, 1), (0, 0), (1, 1), 1),
            ((3, 1, 1), (4, 1, 1), (6, 1, 1)),
            {"w": (6, 4)},
        ),
    ),
    FloatConv,
    INTEGER,
)
