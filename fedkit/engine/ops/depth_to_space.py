"""Channels as places: pixel shuffles, and what a transposed convolution ends with."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.constants import WIDE, Chain, Ints, Mix, Read, to_int32
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.native_backend import (
    NativeBackend,
    NativeOp,
    address,
    chain_struct,
    read_struct,
)
from fedkit.engine.integer.numpy_backend import NumpyOp, across
from fedkit.engine.kernels import int_native, native
from fedkit.engine.kernels.structs import part, pointer
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.ops.take import Take
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import OneSourceOp, Pair, Plan, Shape
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace
from fedkit.graph import ir
from fedkit.graph.pixel_blocks import Blocks, blocks_of, spread

Values = NDArray[Any]


@dataclass(frozen=True)
class DepthToSpace(OneSourceOp):
    """Each pixel becomes a block of pixels, one channel after the other; their border is cut off.

    Pixel (y, x) of channel (c * height + i) * width + j of the source is pixel (y * height + i,
    x * width + j) of channel c of all blocks, from which the target's are taken from `first` on.

    Attributes:
        block: (height, width).
        first: Rows and columns of the blocks that lie before the target.
        bias: Name of what is added to each channel of the target, a parameter, if it is.
    """

    source: int
    target: int
    block: Pair
    first: Pair
    bias: str | None
    kind: Literal["depth-to-space"] = "depth-to-space"

    @property
    def parameters(self) -> tuple[str, ...]:
        """See `PlanOp.parameters`."""
        return () if self.bias is None else (self.bias,)

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        source, target = plan.tensors[self.source].shape, plan.tensors[self.target].shape
        if min(self.block) < 1 or min(self.first) < 0:
            yield f"has blocks of {self.block} from {self.first} on; neither can be that small"
        if source[0] != target[0] * math.prod(self.block):
            yield f"makes {target[0]} channels of {source[0]}, by blocks of {self.block}"
        for axis, name in enumerate(("rows", "columns")):
            found = source[1 + axis] * self.block[axis]
            if self.first[axis] + target[1 + axis] > found:
                yield f"takes {target[1 + axis]} of {found} {name}, from {self.first[axis]} on"
        if self.bias is not None and plan.weights.get(self.bias) != target[:1]:
            found_shape = plan.weights.get(self.bias)
            yield f"has bias {self.bias!r} of shape {found_shape}; it must be {target[:1]}"


def _inside(op: DepthToSpace, plan: Plan) -> tuple[slice, slice]:
    """Return which rows and columns of all blocks are the target's."""
    (top, left), (_, height, width) = op.first, plan.tensors[op.target].shape
    return slice(top, top + height), slice(left, left + width)


def spread_out(op: DepthToSpace, plan: Plan, x: Values) -> Values:
    """Return [n, channels, height, width] of the source as that of the target."""
    whole = spread(np.moveaxis(x, 1, 3), Blocks(*op.block, by_channel=True))
    rows, columns = _inside(op, plan)
    return np.moveaxis(whole[:, rows, columns], 3, 1)


def gathered(op: DepthToSpace, plan: Plan, x: Values) -> Values:
    """Undo `spread_out`, with 0 for what it cut off."""
    channels, height, width = plan.tensors[op.source].shape
    whole = np.zeros((len(x), x.shape[1], height * op.block[0], width * op.block[1]), x.dtype)
    rows, columns = _inside(op, plan)
    whole[:, :, rows, columns] = x
    parts = whole.reshape(len(x), x.shape[1], height, op.block[0], width, op.block[1])
    return parts.transpose(0, 1, 3, 5, 2, 4).reshape(len(x), channels, height, width)


class CBlocks(ctypes.Structure):
    """`struct blocks` of kernels.h."""

    _fields_ = (
        ("source", ctypes.POINTER(native.CTensor)),
        ("target", ctypes.POINTER(native.CTensor)),
        ("bias", ctypes.c_void_p),
        ("bias_gradient", ctypes.c_void_p),
        ("in_height", ctypes.c_int32),
        ("in_width", ctypes.c_int32),
        ("out_height", ctypes.c_int32),
        ("out_width", ctypes.c_int32),
        ("step_y", ctypes.c_int32),
        ("step_x", ctypes.c_int32),
        ("top", ctypes.c_int32),
        ("left", ctypes.c_int32),
        ("accumulate", ctypes.c_int32),
    )


def _sizes(op: DepthToSpace, plan: Plan) -> dict[str, int]:
    """Return the sizes of both structs, by the names of their fields."""
    (_, in_height, in_width), (_, out_height, out_width) = (
        plan.tensors[tensor].shape for tensor in (op.source, op.target)
    )
    return {
        **{"in_height": in_height, "in_width": in_width},
        **{"out_height": out_height, "out_width": out_width},
        **{"step_y": op.block[0], "step_x": op.block[1]},
        **{"top": op.first[0], "left": op.first[1]},
    }


class FloatDepthToSpace(FloatOp[DepthToSpace]):
    """Reads and writes each element once."""

    def __init__(self, op: DepthToSpace, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        parameters = work.network.parameters
        gradient = work.gradient if work.mode == "train" else None
        self._struct = CBlocks(
            *(ctypes.pointer(work.tensors[each]) for each in (op.source, op.target)),
            bias=part(parameters, op.bias, parameters.values),
            bias_gradient=part(parameters, op.bias, gradient),
            **_sizes(op, work.plan),
        )

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        return work.shared(work.kernels.depth_to_space_forward, work.tiles, byref(self._struct))

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        struct, kernels = self._struct, work.kernels
        if self.op.bias is not None:
            channels = work.plan.tensors[self.op.target].shape[0]
            yield work.shared(kernels.depth_to_space_gradients, channels, byref(struct))
        for contribution in given:
            struct.accumulate = contribution.accumulate
            yield work.shared(kernels.depth_to_space_backward, work.tiles, byref(struct))


class IntegerDepthToSpace(IntegerOp[DepthToSpace]):
    """One unit for all that is read and added; gradients keep those of their channels."""

    compute: NumpyDepthToSpace | NativeDepthToSpace

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        real = units.network.real(op.bias) if op.bias else np.zeros(units.channels(op.target))
        unit = (units.worth[op.source].bound + float(np.abs(real).max())) / WIDE
        bias = to_int32(np.rint(real / unit))
        self.compute.forward(units.read(op.source, unit, WIDE), bias)
        units.raw_unit[op.target] = np.full(units.channels(op.target), unit)

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        op = self.op
        unit = np.maximum(units.passed_bound(op.target), LEAST) / WIDE
        chain = units.chain_in(op.target, unit, WIDE)
        if op.bias:
            units.network.part(op.bias, units.gradient)[:] = self.compute.sums(chain)
            units.gradient_units[op.bias] = unit
        for contribution in given:
            slope = Slope.whole(np.repeat(unit, math.prod(op.block)))
            self.compute.backward(chain, units.give(contribution, slope))


class NumpyDepthToSpace(NumpyOp[DepthToSpace]):
    """Moves all at once."""

    def forward(self, read: Read, bias: Ints) -> None:
        """Write raw = what is read + bias, within 15 bits."""
        op, backend = self.op, self.backend
        moved = spread_out(op, backend.plan, backend.read(op.source, read))
        backend.raw[op.target] = np.clip(moved + across(bias), -WIDE, WIDE)

    def sums(self, chain: Chain) -> NDArray[np.int64]:
        """Return the sum of the passed gradients per channel of the target."""
        return np.asarray(self.backend.passed(self.op.target, chain).sum((0, 2, 3)))

    def backward(self, chain: Chain, mix: Mix | None) -> None:
        """Give the passed gradients to where their values come from."""
        op, backend = self.op, self.backend
        backend.put(op.source, gathered(op, backend.plan, backend.passed(op.target, chain)), mix)


class IntBlocks(ctypes.Structure):
    """`struct int_blocks`."""

    _fields_ = (
        ("source", ctypes.POINTER(int_native.IntTensor)),
        ("target", ctypes.POINTER(int_native.IntTensor)),
        ("read", int_native.IntRead),
        ("chain", int_native.IntChain),
        ("mix", int_native.IntMix),
        ("where", CBlocks),
        ("bias", ctypes.c_void_p),
        ("accumulate", ctypes.c_int32),
    )


class NativeDepthToSpace(NativeOp[DepthToSpace]):
    """The same by kernels."""

    def __init__(self, op: DepthToSpace, number: int, backend: NativeBackend) -> None:
        super().__init__(op, number, backend)
        ends = (ctypes.pointer(backend.tensors[each]) for each in (op.source, op.target))
        self._struct = IntBlocks(*ends, where=CBlocks(**_sizes(op, backend.plan)))

    def forward(self, read: Read, bias: Ints) -> None:
        """See `NumpyDepthToSpace.forward`."""
        self._struct.read, self._struct.bias = read_struct(read), pointer(bias)
        self.backend.kernels.int_depth_to_space_forward(byref(self._struct), 0, self.backend.tiles)

    def sums(self, chain: Chain) -> NDArray[np.int64]:
        """See `NumpyDepthToSpace.sums`."""
        self._struct.chain = chain_struct(chain)
        found = self.backend.zeros(self.op.target, np.int64)
        self.backend.kernels.int_depth_to_space_gradients(byref(self._struct), address(found))
        return found

    def backward(self, chain: Chain, mix: Mix | None) -> None:
        """See `NumpyDepthToSpace.backward`."""
        struct, backend = self._struct, self.backend
        struct.chain = chain_struct(chain)
        self.set_mix(struct, self.op.source, mix)
        backend.kernels.int_depth_to_space_backward(byref(struct), 0, backend.tiles)


def _planned(maker: Any, op: ir.Op) -> int:
    blocks, source, target = blocks_of(op), maker.value(op), maker.target(op)
    if not blocks.by_channel:
        source = _by_channel(maker, source, blocks.pixels)
    block = (blocks.height, blocks.width)
    maker.ops.append(DepthToSpace(source, target, block, (0, 0), None))
    return int(target)


def _by_channel(maker: Any, source: int, pixels: int) -> int:
    """Add what puts the pixels of each channel one behind the other."""
    shape = maker.tensors[source].shape
    order = np.arange(shape[0]).reshape(pixels, -1).T.ravel()
    ordered = maker.new(shape)
    maker.ops.append(Take(source, ordered, tuple(order.tolist())))
    return int(ordered)


_MAP: Shape = (12, 2, 3)

FAMILY = Family(
    DepthToSpace,
    (
        Example(DepthToSpace(1, 2, (2, 3), (0, 0), None), (_MAP, _MAP, (2, 4, 9))),
        Example(DepthToSpace(1, 2, (2, 2), (1, 1), "b"), (_MAP, _MAP, (3, 3, 5)), {"b": (3,)}),
        Example(
            DepthToSpace(1, 2, (1, 4), (0, 5), "b"),
            ((8, 1, 3), (8, 1, 3), (2, 1, 7)),
            {"b": (2,)},
        ),
    ),
    FloatDepthToSpace,
    IntegerFamily(IntegerDepthToSpace, NumpyDepthToSpace, NativeDepthToSpace),
    {"depth_to_space": _planned},
)
