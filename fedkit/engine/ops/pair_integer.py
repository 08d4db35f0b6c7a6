"""Products, differences and sums of two tensors in integers.

A product is of two reads of 15 bits. What a gate gets is a sum over the plane in int32, which its
largest value decides the unit of: a bound would leave it few bits.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import byref

import numpy as np

from fedkit.core.numerics import shift_right_half_even, shift_right_half_up
from fedkit.engine.integer.constants import (
    WIDE,
    Chain,
    Ints,
    Mix,
    Read,
    Reals,
    shift_to_fit,
    to_int32,
)
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.native_backend import (
    NativeBackend,
    NativeOp,
    address,
    chain_struct,
    read_struct,
)
from fedkit.engine.integer.numpy_backend import Array, NumpyOp, across
from fedkit.engine.kernels import int_native
from fedkit.engine.plan.execution import Contribution, sides
from fedkit.engine.plan.pair import KINDS, PairOp
from fedkit.engine.plan.structure import Plan

_BITS = 15
"""By which a product is narrowed."""


def _is_gate(op: PairOp, plan: Plan, side: int) -> bool:
    """Say whether a side has a single pixel for all of the target's."""
    return plan.tensors[op.sources[side]].shape != plan.tensors[op.target].shape


class IntegerPair(IntegerOp[PairOp]):
    """Chooses the units of both sides."""

    compute: NumpyPair | NativePair

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        bounds = [units.worth[side].bound for side in op.sources]
        if op.kind == "mul":
            highs, steps = [WIDE, WIDE], [bound / WIDE for bound in bounds]
            unit = math.prod(steps) * 2.0**_BITS
        else:
            high, unit = int(bounds[0] / sum(bounds) * WIDE), sum(bounds) / WIDE
            highs, steps = [high, WIDE - high], [unit, unit]
        self._steps = steps
        self._reads = [units.read(*each) for each in zip(op.sources, steps, highs, strict=True)]
        self.compute.forward(*self._reads)
        units.raw_unit[op.target] = np.full(units.channels(op.target), unit)

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        for side, contribution in sides(self.op, given):
            self._give(units, side, contribution)

    def _give(self, units: Units, side: int, contribution: Contribution) -> None:
        op, gate = self.op, _is_gate(self.op, units.plan, side)
        plane = math.prod(units.plan.tensors[op.target].shape[1:])
        high = min(WIDE, 2**30 // plane) if gate else WIDE
        unit = np.maximum(units.passed_bound(op.target), LEAST) / high
        chain, other = units.chain_in(op.target, unit, high), self._reads[1 - side]
        worth = unit * (self._steps[1 - side] * 2.0**_BITS if op.kind == "mul" else 1.0)
        if gate:
            self._give_sums(units, side, contribution, chain, worth)
        else:
            mix = units.give(contribution, Slope.whole(worth))
            self.compute.backward(side, other, chain, mix)

    def _give_sums(
        self, units: Units, side: int, contribution: Contribution, chain: Chain, worth: Reals
    ) -> None:
        peak = self.compute.add_up(side, self._reads[1 - side], chain)
        shift = shift_to_fit(peak.astype(np.float64))
        most = shift_right_half_even(peak.astype(np.int64), shift.astype(np.int64))
        slope = Slope(np.ldexp(worth, shift), most.astype(np.float64))
        self.compute.put_sums(side, shift, units.give(contribution, slope))


class NumpyPair(NumpyOp[PairOp]):
    """Arithmetic that widens a gate by itself."""

    def forward(self, left: Read, right: Read) -> None:
        """Write raw = left(x) * right(y) >> 15, rounded half up; or the difference or sum."""
        op, backend = self.op, self.backend
        x, y = backend.read(op.left, left), backend.read(op.right, right)
        if op.kind == "mul":
            backend.raw[op.target] = shift_right_half_up(x * y, _BITS)
        else:
            backend.raw[op.target] = x - y if op.kind == "sub" else x + y

    def backward(self, side: int, other: Read, chain: Chain, mix: Mix | None) -> None:
        """Give a side that has all pixels its gradient."""
        self.backend.put(self.op.sources[side], self._gradient(side, other, chain), mix)

    def add_up(self, side: int, other: Read, chain: Chain) -> Ints:
        """Sum a gate's gradient over the plane; return the largest magnitude per channel."""
        self._sums = self._gradient(side, other, chain).sum((2, 3), keepdims=True)
        return to_int32(np.abs(self._sums).max((0, 2, 3)))

    def put_sums(self, side: int, shift: Ints, mix: Mix | None) -> None:
        """Give the gate its sums >> shift, rounded half to even."""
        sums, by = self._sums, np.broadcast_to(across(shift), self._sums.shape)
        self.backend.put(self.op.sources[side], shift_right_half_even(sums, by), mix)
        del self._sums

    def _gradient(self, side: int, other: Read, chain: Chain) -> Array:
        """Return passed * other(x) >> 15, rounded half to even; or passed with its sign."""
        op, passed = self.op, self.backend.passed(self.op.target, chain)
        if op.kind == "mul":
            factor = self.backend.read(op.sources[1 - side], other)
            return shift_right_half_even(passed * factor, _BITS)
        return -passed if op.kind == "sub" and side else passed


class IntPair(ctypes.Structure):
    """`struct int_pair`."""

    _fields_ = (
        ("left", ctypes.POINTER(int_native.IntTensor)),
        ("right", ctypes.POINTER(int_native.IntTensor)),
        ("target", ctypes.POINTER(int_native.IntTensor)),
        ("read_left", int_native.IntRead),
        ("read_right", int_native.IntRead),
        ("chain", int_native.IntChain),
        ("mix", int_native.IntMix),
        ("kind", ctypes.c_int32),
        ("side", ctypes.c_int32),
        ("accumulate", ctypes.c_int32),
    )


class NativePair(NativeOp[PairOp]):
    """The same by kernels, with the sums of a gate as scratch."""

    def __init__(self, op: PairOp, number: int, backend: NativeBackend) -> None:
        super().__init__(op, number, backend)
        channels = backend.plan.tensors[op.target].shape[0]
        if _is_gate(op, backend.plan, 0) or _is_gate(op, backend.plan, 1):
            backend.reserve(4 * backend.lanes * backend.most_tiles * channels)
        ends = (ctypes.pointer(backend.tensors[each]) for each in (*op.sources, op.target))
        self._struct = IntPair(*ends, kind=KINDS.index(op.kind))

    def forward(self, left: Read, right: Read) -> None:
        """See `NumpyPair.forward`."""
        struct, backend = self._struct, self.backend
        struct.read_left, struct.read_right = read_struct(left), read_struct(right)
        backend.kernels.int_pair_forward(byref(struct), 0, backend.tiles)

    def backward(self, side: int, other: Read, chain: Chain, mix: Mix | None) -> None:
        """See `NumpyPair.backward`."""
        self._set(side, other, chain)
        self.set_mix(self._struct, self.op.sources[side], mix)
        self.backend.kernels.int_pair_backward(byref(self._struct), 0, self.backend.tiles)

    def add_up(self, side: int, other: Read, chain: Chain) -> Ints:
        """See `NumpyPair.add_up`."""
        backend, peak = self.backend, self.backend.zeros(self.op.target, np.int32)
        self._set(side, other, chain)
        backend.kernels.int_pair_sum(
            byref(self._struct), 0, backend.tiles, backend.scratch, address(peak)
        )
        return peak

    def put_sums(self, side: int, shift: Ints, mix: Mix | None) -> None:
        """See `NumpyPair.put_sums`."""
        backend = self.backend
        self.set_mix(self._struct, self.op.sources[side], mix)
        backend.kernels.int_pair_put(
            byref(self._struct), address(shift), 0, backend.tiles, backend.scratch
        )

    def _set(self, side: int, other: Read, chain: Chain) -> None:
        struct = self._struct
        struct.side, struct.chain = side, chain_struct(chain)
        if side:
            struct.read_left = read_struct(other)
        else:
            struct.read_right = read_struct(other)


INTEGER = IntegerFamily(IntegerPair, NumpyPair, NativePair)
