"""Convolutions and linear layers in integers."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from ctypes import POINTER, c_int32, c_void_p

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import shift_right_half_even, shift_right_half_up
from fedkit.engine.integer.constants import (
    CLIP,
    Chain,
    Ints,
    Mix,
    Read,
    Reals,
    shift_to_fit,
    to_int32,
)
from fedkit.engine.integer.integer_network import Codes, full_weight
from fedkit.engine.integer.integer_op import IntegerFamily, IntegerOp, Slope, Units, check_sums
from fedkit.engine.integer.native_backend import NativeBackend
from fedkit.engine.integer.numpy_backend import Array, NumpyOp, across, padded, window
from fedkit.engine.integer.shared_units import SharedUnits
from fedkit.engine.integer.stepped_op import Step, SteppedOp
from fedkit.engine.kernels import int_native, native
from fedkit.engine.kernels.int_native import StepKind
from fedkit.engine.kernels.network import Layer
from fedkit.engine.kernels.structs import pointer
from fedkit.engine.plan.conv import Convolution
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.geometry import Geometry, Taps

_BIAS = 2.0**26
"""Largest bias in units of a layer's sums."""

Sums = NDArray[np.int64]


# Units


class IntegerConv(IntegerOp[Convolution]):
    """Codes of few bits times codes of few bits; gradients are rounded at random to as few."""

    raw_is_output = True
    compute: NumpyConv
    codes: Codes

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op, number, network = self.op, self.number, units.network
        read, unit = self.reading = units.layer_read(number, op.source)
        real_bias = network.real(op.bias) if op.bias else np.zeros(units.channels(op.target))
        codes = self.codes = network.codes(number, np.abs(real_bias) / unit / _BIAS)
        sums = network.row_sums(number, np.abs(codes.values))
        worth = unit * codes.scale
        bias = np.rint(real_bias / worth)
        bound = sums * max(read.high, -read.low) + np.abs(bias)
        self.check_sums(units, bound)
        shift = shift_to_fit(bound)
        self.compute.forward(read, codes, to_int32(bias), shift)
        units.raw_unit[op.target] = np.ldexp(worth, shift)

    def check_sums(self, units: Units, bound: Reals | float) -> None:
        """See `IntegerOp.check_sums`."""
        bits = units.network.layer_bits(self.number)
        check_sums(bound, self.op.weight, f"use fewer bits than {bits}")

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        op, number, network = self.op, self.number, units.network
        codes, (read, unit_in) = self.codes, self.reading
        bits = network.layer_bits(number)
        most = 2 ** (bits - 1) - 1
        ranges = units.passed_range(op.target)
        # The scales of the weights' rows go to the gradient, so that products have one scale.
        factor, unit = units.scaled_gradient(ranges * codes.scale, bits)
        step = unit * factor / codes.scale
        chain = units.chain_in(
            op.target, step, most, factor=to_int32(factor), key=units.key(number)
        )
        shift, mix = np.zeros(units.channels(op.source), np.int32), None
        if given:
            bound = most * network.column_sums(number, np.abs(codes.values), factor)
            self.check_sums(units, bound)
            shift = shift_to_fit(bound)
            new = Slope.whole(np.ldexp(unit, shift))
            mix = units.give(given[0], new)
        weights = units.trains(op.weight)
        gradient, sums = self.compute.backward(read, chain, shift, mix, bool(given), weights)
        if weights:
            network.part(op.weight, units.gradient)[:] = gradient
            units.gradient_units[op.weight] = unit * unit_in / codes.scale
        if op.bias:
            network.part(op.bias, units.gradient)[:] = sums
            units.gradient_units[op.bias] = unit / codes.scale


# In numpy


class NumpyConv(NumpyOp[Convolution]):
    """One product of matrices per place in the kernel."""

    weights: Array

    def forward(self, read: Read, codes: Codes, bias: Ints, shift: Ints) -> None:
        """Write raw = (weights * read(x) + bias + half) >> shift."""
        op, backend = self.op, self.backend
        self.weights = full_weight(backend.network, self.number, codes.values).astype(np.int64)
        x, sums = backend.read(op.source, read), np.asarray(across(bias))
        for y_x, weight in _taps(op, self.weights):
            seen = window(op, padded(op, x), y_x, backend.plane(op.target), op.dilation)
            sums = sums + _product(op.groups, weight, seen)
        backend.raw[op.target] = shift_right_half_up(sums, across(shift))

    def backward(
        self, read: Read, chain: Chain, shift: Ints, mix: Mix | None, source: bool, weights: bool
    ) -> tuple[Sums, Sums]:
        """Take the passed gradient p of the target, and the weights of the forward pass.

        Args:
            read: How its source was read.
            chain: How the target's gradient passes.
            shift: sum >> shift, rounded half to even, is a gradient of the source.
            mix: How that is added to what the source's gradient holds; None: it holds nothing.
            source: Whether the source needs a gradient.
            weights: Whether the kept weights do.

        Returns:
            Gradients of the kept weights, p * read(x), 0 where they are not wanted, and per channel
            the sum of p; int64.
        """
        op, backend = self.op, self.backend
        x, p = backend.read(op.source, read), backend.passed(op.target, chain)
        gradient, plane = np.zeros_like(self.weights), backend.plane(op.target)
        sums = np.zeros_like(padded(op, x))
        for (ky, kx), weight in _taps(op, self.weights):
            seen = window(op, padded(op, x), (ky, kx), plane, op.dilation)
            if weights:
                gradient[:, :, ky, kx] = _outer(op.groups, p, seen)
            window(op, sums, (ky, kx), plane, op.dilation)[...] += _transposed(op.groups, weight, p)
        if source:
            (top, left), (height, width) = op.padding, x.shape[2:]
            inside = sums[:, :, top : top + height, left : left + width]
            given = shift_right_half_even(inside, across(shift))
            if read.clips:
                given = np.where(np.abs(x) < read.high, given, 0)
            backend.put(op.source, given, mix)
        kept = backend.network.parameters.kept.get(op.weight)
        flat = gradient.reshape(-1)
        return flat if kept is None else flat[kept], p.sum((0, 2, 3))


def _taps(op: Convolution, weights: Array) -> Iterator[tuple[tuple[int, int], Array]]:
    for ky, kx in np.ndindex(*op.kernel):
        yield (ky, kx), weights[:, :, ky, kx]


def _grouped(groups: int, x: Array) -> NDArray[np.float64]:
    """Return [groups, channels of a group, n * height * width]."""
    by_channel = x.astype(np.float64).transpose(1, 0, 2, 3)
    return by_channel.reshape(groups, x.shape[1] // groups, -1)


def _ungrouped(found: NDArray[np.float64], like: Array) -> Array:
    n, _, height, width = like.shape
    return found.astype(np.int64).reshape(-1, n, height, width).transpose(1, 0, 2, 3)


def _product(groups: int, weight: Array, x: Array) -> Array:
    """Return weight [outputs, inputs of a group] times x, per group."""
    split = weight.astype(np.float64).reshape(groups, -1, weight.shape[1])
    return _ungrouped(split @ _grouped(groups, x), x)


def _transposed(groups: int, weight: Array, p: Array) -> Array:
    split = weight.astype(np.float64).reshape(groups, -1, weight.shape[1])
    return _ungrouped(split.transpose(0, 2, 1) @ _grouped(groups, p), p)


def _outer(groups: int, p: Array, x: Array) -> Array:
    """Return the sum of p times x over examples and pixels, [outputs, inputs of a group]."""
    found = _grouped(groups, p) @ _grouped(groups, x).transpose(0, 2, 1)
    return found.astype(np.int64).reshape(p.shape[1], -1)


# By the compiled kernels


class IntMap(ctypes.Structure):
    """`struct int_map`."""

    _fields_ = (
        ("first", c_void_p),
        ("offset", c_void_p),
        ("weight", c_void_p),
        ("slot_in", c_void_p),
        ("slot_out", c_void_p),
        ("rows", c_int32),
        ("pairs", c_int32),
        ("slots", c_int32),
    )


class IntConv(ctypes.Structure):
    """`struct int_conv`."""

    _fields_ = (
        ("source", POINTER(int_native.IntTensor)),
        ("target", POINTER(int_native.IntTensor)),
        ("read", int_native.IntRead),
        ("chain", int_native.IntChain),
        ("mix", int_native.IntMix),
        ("forward", IntMap),
        ("backward", POINTER(IntMap)),
        ("bias", c_void_p),
        ("shift_out", c_void_p),
        ("shift_in", c_void_p),
        ("first", c_void_p),
        ("tap", c_void_p),
        ("full_offset", c_void_p),
        ("used_in", c_void_p),
        ("used_out", c_void_p),
        ("first_unclipped", c_void_p),
        ("last_unclipped", c_void_p),
        ("line_in", c_void_p),
        ("line_out", c_void_p),
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
        ("full_taps", c_int32),
        ("stride", c_int32),
        ("most_slots", c_int32),
        ("accumulate", c_int32),
    )


class IntConvStep(ctypes.Structure):
    """`struct int_conv_step`."""

    _fields_ = (
        ("conv", POINTER(IntConv)),
        ("source", POINTER(int_native.IntWorth)),
        ("target", POINTER(int_native.IntWorth)),
        ("weight", int_native.IntParameter),
        ("bias", int_native.IntParameter),
        ("codes", int_native.IntCodes),
        ("first", c_void_p),
        ("last", c_void_p),
        ("unit", ctypes.c_double),
        ("widest", ctypes.c_double),
        ("high", c_int32),
        ("most", c_int32),
        ("stored", c_int32),
        ("clips", c_int32),
        ("number", c_int32),
        ("trains", c_int32),
        ("gives", c_int32),
        ("accumulate", c_int32),
    )


class NativeConv(SteppedOp[Convolution]):
    """Each weight lies in memory once per order in which a map reads it."""

    def __init__(self, op: Convolution, number: int, backend: NativeBackend) -> None:
        super().__init__(op, number, backend)
        layer = self._layer = backend.network.layers[number]
        backend.reserve(scratch_bytes(layer.geometry))
        self._struct = _struct(layer, backend)
        self._orders = _orders(layer, backend.kernels.int_rows())
        self._bind_maps(layer.geometry)

    def _bind_maps(self, geometry: Geometry) -> None:
        """Make the maps, with room for the weights in the order of each."""
        forward, *backward = self._orders
        self._struct.forward = forward.map(geometry.target[0], geometry.slot_in, geometry.slot_out)
        maps = (IntMap * len(backward))()
        for index, (order, phase) in enumerate(zip(backward, geometry.phases, strict=True)):
            maps[index] = order.map(geometry.source[0], phase.slot_in, phase.slot_out)
            maps[index].slots = phase.slots
        self._struct.backward, self._maps = maps, maps
        self._struct.forward.slots = geometry.target[1] * geometry.target[2]

    def forward_step(self, shared: SharedUnits) -> Step:
        """See `SteppedOp.forward_step`."""
        op, network, units = self.op, self.backend.network, shared.units
        bits, what = network.layer_bits(self.number), self.backend.plan.tensors[op.source]
        signed = what.activation == "none"
        self._read = np.zeros((3, what.shape[0]), np.int32)
        conv = self._struct
        conv.read = int_native.IntRead(*map(pointer, self._read))
        conv.chain, conv.mix = units.chain, units.mix
        conv.bias, conv.shift_out = units.chain.a, units.chain.b
        conv.shift_in, first, last = shared.spare
        rows = self._layer.geometry.target[0]
        self._step = IntConvStep(
            conv=ctypes.pointer(conv),
            source=shared.at(op.source),
            target=shared.at(op.target),
            weight=shared.parameter(op.weight, rows, wanted=False),
            bias=shared.parameter(op.bias, rows, wanted=False),
            codes=self._codes(CLIP[bits], 2 ** (bits - 1) - 1),
            first=first,
            last=last,
            widest=CLIP[bits] if signed else math.sqrt(2) * CLIP[bits + 1],
            high=2 ** (bits - 1) - 1 if signed else 2**bits - 1,
            most=2 ** (bits - 1) - 1,
            stored=bits == 8 and what.norm is None and op.source not in shared.finer,
            number=self.number,
        )
        return StepKind.CONV_FORWARD, self._step

    def _codes(self, clip: float, most: int) -> int_native.IntCodes:
        network, geometry = self.backend.network, self._layer.geometry
        kept = len(network.part(self.op.weight, network.weights))
        self._code, self._scale = np.zeros(kept, np.int16), np.zeros(geometry.target[0])
        self._order_structs = (int_native.IntOrder * len(self._orders))(
            *(order.struct() for order in self._orders)
        )
        return int_native.IntCodes(
            code=pointer(self._code),
            scale=pointer(self._scale),
            ends=pointer(network.row_ends(self.number)),
            column=pointer(network.columns(self.number)),
            orders=self._order_structs,
            clip=clip,
            rows=geometry.target[0],
            columns=geometry.source[0],
            area=math.prod(self.op.kernel) if self._layer.dense else 0,
            order_count=len(self._orders),
            most=most,
        )

    def backward_steps(self, shared: SharedUnits, given: Sequence[Contribution]) -> Sequence[Step]:
        """See `SteppedOp.backward_steps`."""
        step, op, rows = self._step, self.op, self._layer.geometry.target[0]
        step.trains = shared.trains(op.weight)
        step.weight = shared.parameter(op.weight, rows, bool(step.trains))
        step.bias = shared.parameter(op.bias, rows, wanted=True)
        step.gives = bool(given)
        step.accumulate = bool(given) and given[0].accumulate
        return [(StepKind.CONV_BACKWARD, step)]


def scratch_bytes(geometry: Geometry) -> int:
    """Return the bytes of the padded planes of a part."""
    return 2 * geometry.tiles_per_part * (geometry.tile_in + geometry.tile_out)


def _struct(layer: Layer, backend: NativeBackend) -> IntConv:
    geometry = layer.geometry
    op, (line_in, line_out) = geometry.op, geometry.lines
    taps = layer.forward
    return IntConv(
        source=ctypes.pointer(backend.tensors[op.source]),
        target=ctypes.pointer(backend.tensors[op.target]),
        first=None if layer.dense else pointer(taps.first),
        tap=pointer(taps.tap),
        full_offset=pointer(geometry.full_offset),
        used_in=pointer(layer.used_in),
        used_out=pointer(layer.used_out),
        line_in=pointer(line_in),
        line_out=pointer(line_out),
        in_=native.CPadding(*vars(geometry.padded_in).values()),
        out=native.CPadding(*vars(geometry.padded_out).values()),
        in_height=geometry.source[1],
        in_width=geometry.source[2],
        out_height=geometry.target[1],
        out_width=geometry.target[2],
        lines=geometry.lines_per_tile,
        line_length=geometry.line_length,
        phases=len(geometry.phases),
        tiles_per_part=geometry.tiles_per_part,
        full_taps=geometry.full_taps,
        stride=op.stride[1] * geometry.lanes,
    )


class _Order:
    """The weights of one map: where each tap's value comes from, and room for the values.

    Args:
        first: Pairs before each row [rows + 1], None where all rows have all taps.
        offset: [pairs, 2], or for all rows alike.
        index: Position of each value among the kept ones [.., 2]; -1 is 0.
    """

    def __init__(self, first: Ints | None, offset: Ints, index: NDArray[np.int64]) -> None:
        self._first, self._offset, self._index = first, offset, to_int32(index)
        self._weight = np.zeros(index.shape, np.int16)

    def struct(self) -> int_native.IntOrder:
        """Return where the kernels lay the codes."""
        return int_native.IntOrder(pointer(self._weight), pointer(self._index), self._index.size)

    def map(self, rows: int, slot_in: Ints, slot_out: Ints) -> IntMap:
        return IntMap(
            first=pointer(self._first),
            offset=pointer(self._offset),
            weight=pointer(self._weight),
            slot_in=pointer(slot_in),
            slot_out=pointer(slot_out),
            rows=rows,
            pairs=self._offset.size // 2,
        )


def _orders(layer: Layer, block: int) -> list[_Order]:
    """Return the order of the forward map, and of each backward one.

    Args:
        layer: The layer.
        block: Rows of a block of a dense map.
    """
    if not layer.dense:
        return [_sparse_order(taps) for taps in (layer.forward, *layer.backward)]
    geometry = layer.geometry
    rows, taps = geometry.target[0], geometry.full_taps
    whole = np.arange(rows * taps).reshape(rows, taps)
    orders = [_dense_order(geometry.full_offset, whole, block)]
    for phase in geometry.phases:
        offset, origin = geometry.dense_phase(phase)
        area = geometry.op.kernel[0] * geometry.op.kernel[1]
        from_row = np.arange(geometry.source[0])[:, None] * area
        orders.append(_dense_order(offset, origin + from_row, block))
    return orders


def _dense_order(offset: Ints, index: NDArray[np.int64], block: int) -> _Order:
    if len(offset) % 2:
        offset = np.append(offset, offset[:1])
        index = np.pad(index, ((0, 0), (0, 1)), constant_values=-1)
    return _Order(None, to_int32(offset), _interleaved(index, block))


def _interleaved(index: NDArray[np.int64], block: int) -> NDArray[np.int64]:
    """Return [rows, taps] with pairs of taps side by side for the rows of a block."""
    parts, begin = [], 0
    for size in (block, 2, 1):
        end = begin + (len(index) - begin) // size * size
        rows = index[begin:end].reshape((end - begin) // size, size, index.shape[1] // 2, 2)
        parts.append(rows.transpose(0, 2, 1, 3).reshape(-1))
        begin = end
    return np.concatenate(parts)


def _sparse_order(taps: Taps) -> _Order:
    counts = np.diff(taps.first)
    pairs = -(-counts // 2)
    first = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(pairs, out=first[1:])
    # Where each tap goes: its place in its row, after the pairs of the rows before.
    row = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(row)) - taps.first[row] + 2 * first[row]
    places = 2 * int(first[-1])
    offset, index = np.zeros(places, np.int32), np.full(places, -1, np.int64)
    offset[place], index[place] = taps.tap["offset"], taps.tap["index"]
    return _Order(first, offset, index)


INTEGER = IntegerFamily(IntegerConv, NumpyConv, NativeConv)
