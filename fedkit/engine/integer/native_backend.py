"""The integer ops by the compiled kernels. Tensors lie in one arena, as in the sparse engine."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_int64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.constants import CODE, Chain, Ints, Mix, Read, Requantisation, to_int32
from fedkit.engine.integer.integer_network import Codes, IntegerNetwork
from fedkit.engine.integer.layer_norm import Deviation, Scale
from fedkit.engine.kernels import int_native
from fedkit.engine.kernels.native import CPadding, Kernels
from fedkit.engine.kernels.network import Layer
from fedkit.engine.kernels.structs import pointer, windows
from fedkit.engine.plan.execution import Forward, Key, Schedule, Step, place, touched
from fedkit.engine.plan.geometry import Geometry, Taps
from fedkit.engine.plan.plan import Add, Copy, LayerNorm, Plan, Pool

_CARRIERS = {"none": 0, "x": 1, "sign": 2, "hat": 1}
_BYTES = {"x": 1, "raw": 2, "g": 2}
_ALIGN = 64
_SUM = 2**31 - 1

Sums = NDArray[np.int64]


class NativeBackend:
    """Implements `fedkit.engine.integer.backend.Backend`.

    Args:
        network: The model and its weights.
        kernels: The compiled kernels.
        schedule: What is to run.
        batch: Most examples of one batch.
    """

    def __init__(
        self, network: IntegerNetwork, kernels: Kernels, schedule: Schedule, batch: int
    ) -> None:
        self._network, self._plan, self._kernels = network, network.plan, kernels
        self._lanes = network.lanes
        self._keep: list[object] = []
        self._allocate(schedule, batch)
        self._convs = {n: self._bind_conv(layer) for n, layer in network.layers.items()}
        self._pools = {
            number: self._bind_pool(op)
            for number, op in enumerate(self._plan.ops)
            if isinstance(op, Pool)
        }
        self._layer_lanes = {
            number: np.zeros((6, -(-batch // self._lanes) * self._lanes), np.int32)
            for number, op in enumerate(self._plan.ops)
            if isinstance(op, LayerNorm)
        }
        self._layers = {number: self._bind_layer(number) for number in self._layer_lanes}
        self._orders = {
            n: _orders(layer, kernels.int_rows()) for n, layer in network.layers.items()
        }
        self._maps: dict[int, tuple[int_native.IntMap, Any, list[object]]] = {}
        for number, conv in self._convs.items():
            self._bind_maps(number, conv)

    # Memory

    def _allocate(self, schedule: Schedule, batch: int) -> None:
        tiles = -(-batch // self._lanes)

        def size(key: Key) -> int:
            kind, tensor = key
            count = tiles * int(np.prod(self._plan.tensors[tensor].shape)) * self._lanes
            return -(-count * _BYTES[kind] // _ALIGN) * _ALIGN

        places, peak = place(self._plan, schedule, size, _touched)
        layers = self._network.layers.values()
        scratch = max((self._scratch_bytes(layer.geometry) for layer in layers), default=0)
        pools = [
            self._plan.tensors[op.source].shape for op in self._plan.ops if isinstance(op, Pool)
        ]
        room = max((4 * self._lanes * height * width for _, height, width in pools), default=0)
        self._arena = np.zeros(peak + max(scratch, room) + 2 * _ALIGN, np.int8)
        begin = self._arena.ctypes.data
        begin += -begin % _ALIGN
        self._scratch = c_void_p(begin + peak)
        self.arena_bytes = self._arena.nbytes
        self._tensors = []
        for index, tensor in enumerate(self._plan.tensors):
            channels, height, width = tensor.shape
            found = {
                field: begin + places[kind, index]
                for field, kind in (("x", "x"), ("raw", "raw"), ("gradient", "g"))
                if (kind, index) in places
            }
            self._tensors.append(
                int_native.IntTensor(channels=channels, plane=height * width, **found)
            )

    def _scratch_bytes(self, geometry: Geometry) -> int:
        return 2 * geometry.tiles_per_part * (geometry.tile_in + geometry.tile_out)

    def _bind_conv(self, layer: Layer) -> int_native.IntConv:
        geometry = layer.geometry
        op, (line_in, line_out) = geometry.op, geometry.lines
        taps = layer.forward
        return int_native.IntConv(
            source=ctypes.pointer(self._tensors[op.source]),
            target=ctypes.pointer(self._tensors[op.target]),
            first=None if layer.dense else pointer(taps.first),
            tap=pointer(taps.tap),
            full_offset=pointer(geometry.full_offset),
            used_in=pointer(layer.used_in),
            used_out=pointer(layer.used_out),
            line_in=pointer(line_in),
            line_out=pointer(line_out),
            in_=CPadding(*vars(geometry.padded_in).values()),
            out=CPadding(*vars(geometry.padded_out).values()),
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

    def _bind_pool(self, op: Pool) -> int_native.IntPool:
        return int_native.IntPool(
            source=ctypes.pointer(self._tensors[op.source]),
            target=ctypes.pointer(self._tensors[op.target]),
            windows=windows(op, self._plan),
            maximum=op.operation == "max",
        )

    def _bind_layer(self, number: int) -> int_native.IntLayer:
        op = self._plan.ops[number]
        assert isinstance(op, LayerNorm)
        per_example = ("multiplier", "inverse_shift", "centre", "a", "b", "shift")
        rows = zip(per_example, self._layer_lanes[number], strict=True)
        return int_native.IntLayer(
            source=ctypes.pointer(self._tensors[op.source]),
            target=ctypes.pointer(self._tensors[op.target]),
            l1=op.kind == "l1-layer",
            **{name: pointer(row) for name, row in rows},
        )

    def _bind_maps(self, number: int, conv: int_native.IntConv) -> None:
        """Give a convolution its maps, with room for the weights in the order of each."""
        forward, *backward = self._orders[number]
        geometry = self._network.layers[number].geometry
        conv.forward = forward.map(geometry.target[0], geometry.slot_in, geometry.slot_out)
        maps = (int_native.IntMap * len(backward))()
        for index, (order, phase) in enumerate(zip(backward, geometry.phases, strict=True)):
            maps[index] = order.map(geometry.source[0], phase.slot_in, phase.slot_out)
        conv.backward = maps
        self._keep.append(maps)
        conv.forward.slots = geometry.target[1] * geometry.target[2]
        for index, phase in enumerate(geometry.phases):
            maps[index].slots = phase.slots

    # Running

    def begin(self, examples: int) -> None:
        """See `Backend`."""
        self._tiles = -(-examples // self._lanes)
        self._examples = examples
        for tensor in self._tensors:
            tensor.examples = examples
        for conv in self._convs.values():
            conv.tiles = self._tiles

    def load(self, inputs: NDArray[np.int8], order: NDArray[np.int64]) -> None:
        """See `Backend`."""
        order = np.ascontiguousarray(order, np.int64)
        self._kernels.int_load_examples(
            c_void_p(pointer(inputs)),
            c_void_p(pointer(order)),
            c_int64(len(order)),
            c_int64(int(np.prod(self._plan.tensors[0].shape))),
            c_void_p(self._tensors[0].x),
        )

    def conv_forward(self, number: int, read: Read, codes: Codes, bias: Ints, shift: Ints) -> None:
        """See `Backend`."""
        for order in self._orders[number]:
            order.fill(codes.values)
        conv = self._convs[number]
        conv.read = _read(read)
        conv.bias, conv.shift_out = pointer(bias), pointer(shift)
        self._kernels.int_conv_forward(byref(conv), 0, self._parts(number), self._scratch)

    def _parts(self, number: int) -> int:
        return -(-self._tiles // self._network.layers[number].geometry.tiles_per_part)

    def add_forward(self, number: int, left: Read, right: Read) -> None:
        """See `Backend`."""
        op = self._plan.ops[number]
        assert isinstance(op, Add)
        self._kernels.int_add_forward(
            *(self._tensor(op.left), byref(_read(left))),
            *(self._tensor(op.right), byref(_read(right))),
            *(self._tensor(op.target), 0, self._tiles),
        )

    def copy_forward(self, number: int, read: Read) -> None:
        """See `Backend`."""
        op = self._plan.ops[number]
        assert isinstance(op, Copy)
        source, target = self._tensor(op.source), self._tensor(op.target)
        how = byref(_read(read))
        self._kernels.int_copy_forward(source, how, target, op.channel, 0, self._tiles)

    def pool_forward(self, number: int, read: Read, shift: int) -> None:
        """See `Backend`."""
        pool = self._pools[number]
        pool.read, pool.shift_out = _read(read), shift
        self._kernels.int_pool_forward(byref(pool), 0, self._tiles)

    def layer_forward(
        self, number: int, read: Read, how: Deviation, scale: Scale
    ) -> tuple[Ints, Ints]:
        """See `Backend`."""
        layer = self._layers[number]
        layer.read, layer.eps = _read(read), how.eps
        layer.numerator, layer.exponent = how.numerator, how.exponent
        layer.scale, layer.offset = pointer(scale.a), pointer(scale.b)
        self._kernels.int_layer_forward(byref(layer), 0, self._tiles)
        multiplier, shift = self._layer_lanes[number][:2, : self._examples].copy()
        return multiplier, shift

    def raw_sums(self, tensor: int) -> tuple[Sums, Ints]:
        """See `Backend`."""
        sums, peak = self._zeros(tensor, np.int64), self._zeros(tensor, np.int32)
        self._kernels.int_raw_sums(
            self._tensor(tensor), 0, self._tiles, _address(sums), _address(peak)
        )
        return sums, peak

    def raw_squares(self, tensor: int) -> tuple[Sums, Sums]:
        """See `Backend`."""
        sums, squares = self._zeros(tensor, np.int64), self._zeros(tensor, np.int64)
        self._kernels.int_raw_squares(
            self._tensor(tensor), 0, self._tiles, _address(sums), _address(squares)
        )
        return sums, squares

    def raw_spread(self, tensor: int, centre: Ints) -> Sums:
        """See `Backend`."""
        sums = self._zeros(tensor, np.int64)
        self._kernels.int_raw_spread(
            self._tensor(tensor), _address(centre), 0, self._tiles, _address(sums)
        )
        return sums

    def requantise(self, tensor: int, how: Requantisation) -> None:
        """See `Backend`."""
        arrays = (how.centre, how.a, how.b, how.shift)
        self._kernels.int_requantise(
            self._tensor(tensor), *(_address(array) for array in arrays), 0, self._tiles
        )

    def read_squares(self, tensor: int, read: Read) -> Sums:
        """See `Backend`."""
        sums = self._zeros(tensor, np.int64)
        self._kernels.int_read_squares(
            self._tensor(tensor), byref(_read(read)), 0, self._tiles, _address(sums)
        )
        return sums

    def raw_rows(self, tensor: int) -> NDArray[np.int16]:
        """See `Backend`."""
        rows = np.empty((self._examples, *self._plan.tensors[tensor].shape), np.int16)
        self._copy_rows(tensor, self._tensors[tensor].raw, rows, 1)
        return rows

    def codes(self, tensor: int) -> NDArray[np.int8]:
        """See `Backend`."""
        rows = np.empty((self._examples, *self._plan.tensors[tensor].shape), np.int8)
        self._kernels.int_read_codes(self._tensor(tensor), _address(rows))
        return rows

    def set_gradient(self, tensor: int, gradient: NDArray[np.int16]) -> None:
        """See `Backend`."""
        rows = np.ascontiguousarray(gradient, np.int16)
        self._copy_rows(tensor, self._tensors[tensor].gradient, rows, 0)

    def _copy_rows(self, tensor: int, tiles: int, rows: NDArray[np.int16], to_rows: int) -> None:
        self._kernels.int_copy_rows(
            self._tensor(tensor), c_void_p(tiles), _address(rows), c_int(to_rows)
        )

    def share_gradient(self, tensor: int, source: int) -> None:
        """See `Backend`. The two lie in the same memory."""

    def finish(self, tensor: int, read: Read | None) -> tuple[Sums, Ints]:
        """See `Backend`."""
        sums, peak = np.zeros((self._channels(tensor), 5), np.int64), self._zeros(tensor, np.int32)
        bounds = (None, None) if read is None else _active_codes(read)
        self._kernels.int_finish(
            *(self._tensor(tensor), *(None if b is None else _address(b) for b in bounds)),
            *(0, self._tiles, _address(sums), _address(peak)),
        )
        return sums, peak

    def passed_peak(self, tensor: int, chain: Chain) -> Ints:
        """See `Backend`."""
        peak = self._zeros(tensor, np.int32)
        self._kernels.int_passed_peak(
            self._tensor(tensor), byref(_chain(chain)), 0, self._tiles, _address(peak)
        )
        return peak

    def conv_backward(
        self,
        number: int,
        read: Read,
        chain: Chain,
        shift: Ints,
        mix: Mix | None,
        source: bool,
    ) -> tuple[Sums, Sums]:
        """See `Backend`."""
        conv, op = self._convs[number], self._network.layers[number].geometry.op
        conv.read, conv.chain = _read(read), _chain(chain)
        conv.shift_in, conv.accumulate = pointer(shift), mix is not None
        if mix is not None:
            conv.mix = _mix(mix)
        unclipped = _unclipped_codes(read) if read.clips else (None, None)
        conv.first_unclipped, conv.last_unclipped = (pointer(codes) for codes in unclipped)
        # Each register sums pairs of examples.
        largest = chain.limit * int(chain.factor.max()) * max(read.high, -read.low)
        conv.most_slots = max(1, _SUM // (2 * largest))
        count = len(self._network.part(op.weight, self._network.weights))
        gradient, sums = np.zeros(count, np.int64), self._zeros(op.target, np.int64)
        self._kernels.int_conv_backward(
            *(byref(conv), 0, self._parts(number), self._scratch),
            *(_address(gradient), _address(sums) if op.bias else None),
        )
        return gradient, sums

    def copy_backward(
        self, number: int, source: int, chain: Chain, channel: int, mix: Mix | None
    ) -> None:
        """See `Backend`."""
        added = int_native.IntMix() if mix is None else _mix(mix)
        if mix is None:
            zeros = self._zeros(source, np.int32)
            added = _mix(Mix(zeros, zeros, zeros))
        self._kernels.int_copy_backward(
            *(self._tensor(source), self._tensor(self._plan.ops[number].target)),
            *(byref(_chain(chain)), byref(added), channel, int(mix is not None), 0, self._tiles),
        )

    def pool_backward(
        self, number: int, read: Read, chain: Chain, shift: int, mix: Mix | None
    ) -> None:
        """See `Backend`."""
        pool, op = self._pools[number], self._plan.ops[number]
        assert isinstance(op, Pool)
        zeros = self._zeros(op.source, np.int32)
        pool.read, pool.chain, pool.shift_in = _read(read), _chain(chain), shift
        pool.mix, pool.accumulate = _mix(mix or Mix(zeros, zeros, zeros)), mix is not None
        self._kernels.int_pool_backward(byref(pool), 0, self._tiles, self._scratch)

    def layer_sums(
        self, number: int, read: Read, chain: Chain, factor: Ints
    ) -> tuple[Sums, Sums, Ints]:
        """See `Backend`."""
        layer = self._layers[number]
        layer.read, layer.chain, layer.factor = _read(read), _chain(chain), pointer(factor)
        elements = np.zeros((len(factor), 2), np.int64)
        examples = np.zeros((self._examples, 3), np.int64)
        peak = np.zeros(self._examples, np.int32)
        arrays = (_address(array) for array in (elements, examples, peak))
        self._kernels.int_layer_sums(byref(layer), 0, self._tiles, *arrays)
        return elements, examples, peak

    def layer_backward(
        self, number: int, read: Read, chain: Chain, factor: Ints, out: Chain, mix: Mix | None
    ) -> None:
        """See `Backend`."""
        layer, op = self._layers[number], self._plan.ops[number]
        assert isinstance(op, LayerNorm)
        zeros = self._zeros(op.source, np.int32)
        layer.read, layer.chain, layer.factor = _read(read), _chain(chain), pointer(factor)
        layer.out, layer.accumulate = _chain(out), mix is not None
        layer.mix = _mix(mix or Mix(zeros, zeros, zeros))
        self._kernels.int_layer_backward(byref(layer), 0, self._tiles)

    # Parts

    def _channels(self, tensor: int) -> int:
        return self._plan.tensors[tensor].shape[0]

    def _zeros(self, tensor: int, dtype: type[np.generic]) -> NDArray[Any]:
        return np.zeros(self._channels(tensor), dtype)

    def _tensor(self, tensor: int) -> Any:
        return byref(self._tensors[tensor])


class _Order:
    """The weights of one map: where each tap's value comes from, and room for the values.

    Args:
        first: Pairs before each row [rows + 1], None where all rows have all taps.
        offset: [pairs, 2], or for all rows alike.
        index: Position of each value among the kept ones [.., 2]; -1 is 0.
    """

    def __init__(self, first: Ints | None, offset: Ints, index: NDArray[np.int64]) -> None:
        self._first, self._offset, self._index = first, offset, index
        self._padding = index < 0
        self._weight = np.zeros(index.shape, np.int16)

    def fill(self, values: NDArray[np.int16]) -> None:
        """Take the layer's values."""
        if len(values):
            np.take(values, self._index, out=self._weight, mode="wrap")
            self._weight[self._padding] = 0

    def map(self, rows: int, slot_in: Ints, slot_out: Ints) -> int_native.IntMap:
        return int_native.IntMap(
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


def _touched(plan: Plan, step: Step) -> list[Key]:
    """Return what a step reads or writes; an op writes raw, which is requantised at its end."""
    keys = touched(plan, step)
    if isinstance(step, Forward):
        keys.append(("raw", plan.ops[step.op].target))
    return keys


def _address(array: NDArray[Any]) -> c_void_p:
    return c_void_p(pointer(array))


def _active_codes(read: Read) -> tuple[Ints, Ints]:
    """Return per channel the first and the last code that a read is active for; they are a run."""
    return _codes_between(read, read.start.astype(np.int64) + 1, read.end.astype(np.int64) - 1)


def _unclipped_codes(read: Read) -> tuple[Ints, Ints]:
    """Return per channel the first and the last code whose result is within +-high."""
    shift = read.shift.astype(np.int64)
    half = np.left_shift(1, shift) >> 1
    low = (1 - read.high << shift) - half if read.low < 0 else np.full_like(shift, -(2**40))
    return _codes_between(read, low, (read.high << shift) - half - 1)


def _codes_between(
    read: Read, low: NDArray[np.int64], high: NDArray[np.int64]
) -> tuple[Ints, Ints]:
    """Return per channel the first and the last code x with low <= a * x + b <= high."""
    a, b = read.a.astype(np.int64), read.b.astype(np.int64)
    # What a negative `a` leads to comes from the other end.
    least, most = np.where(a < 0, high, low), np.where(a < 0, low, high)
    some = np.where(a == 0, 1, a)
    first, last = -((b - least) // some), (most - b) // some
    fits = (low <= b) & (b <= high)
    first = np.where(a == 0, np.where(fits, -CODE, CODE + 1), first)
    last = np.where(a == 0, CODE, last)
    return to_int32(np.clip(first, -CODE, CODE + 1)), to_int32(np.clip(last, -CODE - 1, CODE))


def _read(read: Read) -> int_native.IntRead:
    return int_native.IntRead(
        a=pointer(read.a),
        b=pointer(read.b),
        shift=pointer(read.shift),
        low=read.low,
        high=read.high,
    )


def _chain(chain: Chain) -> int_native.IntChain:
    key = chain.key or 0
    return int_native.IntChain(
        a=pointer(chain.a),
        b=pointer(chain.b),
        c=pointer(chain.c),
        shift=pointer(chain.shift),
        factor=pointer(chain.factor),
        carrier=_CARRIERS[chain.carrier],
        limit=chain.limit,
        random=chain.key is not None,
        key_low=key & 0xFFFFFFFF,
        key_high=key >> 32,
    )


def _mix(mix: Mix) -> int_native.IntMix:
    return int_native.IntMix(a=pointer(mix.a), b=pointer(mix.b), shift=pointer(mix.shift))
