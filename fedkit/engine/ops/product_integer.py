"""Products of two activations in integers: codes of few bits on both sides."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref

import numpy as np

from fedkit.core.numerics import shift_right_half_up
from fedkit.engine.integer.constants import Chain, Ints, Read, shift_to_fit_all, to_int32
from fedkit.engine.integer.integer_op import IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.native_backend import NativeBackend, NativeOp, chain_struct
from fedkit.engine.integer.numpy_backend import Array, NumpyOp
from fedkit.engine.kernels import int_native
from fedkit.engine.ops.sides_integer import Mixes, Side, check_products, most, put_side
from fedkit.engine.plan.execution import Contribution, sides
from fedkit.engine.plan.product import Product


class IntegerProduct(IntegerOp[Product]):
    """Reads both sides with the bits of layers, and rounds gradients at random to as few."""

    compute: NumpyProduct | NativeProduct

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        found = [units.layer_read(self.number, side) for side in op.sources]
        self._reads, self._units = [read for read, _ in found], [unit for _, unit in found]
        terms = units.channels(op.left)
        shift = self._fit(terms * most(self._reads[0]) * most(self._reads[1]))
        self.compute.forward(self._reads, shift)
        unit = self._units[0] * self._units[1] * 2.0**shift
        units.raw_unit[op.target] = np.full(units.channels(op.target), unit)

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        if not given:
            return
        op, (outputs, _, columns) = self.op, units.plan.tensors[self.op.target].shape
        bits = units.network.layer_bits(self.number)
        high = 2 ** (bits - 1) - 1
        factor, unit = units.scaled_gradient(units.passed_range(op.target), bits)
        chain = units.chain_in(
            op.target, unit * factor, high, to_int32(factor), units.key(self.number)
        )
        largest, shifts, mixes = high * float(factor.max()), [], {}
        for side, (source, terms) in enumerate(zip(op.sources, (outputs, columns), strict=True)):
            shift = self._fit(terms * largest * most(self._reads[1 - side]))
            shifts.append(np.full(units.channels(source), shift, np.int32))
        for side, contribution in sides(op, given):
            channels = units.channels(contribution.tensor)
            worth = np.full(channels, unit * self._units[1 - side] * 2.0 ** shifts[side][0])
            mixes[side] = units.give(contribution, Slope.whole(worth))
        self.compute.backward(self._reads, chain, shifts, mixes)

    def _fit(self, bound: float) -> int:
        check_products(bound, f"product {self.number}")
        return shift_to_fit_all(bound)


class NumpyProduct(NumpyOp[Product]):
    """Multiplies the matrices of each row of a map."""

    def forward(self, reads: Sequence[Read], shift: int) -> None:
        """Write raw = (sum of left * right + half) >> shift."""
        left, right = self._sides(reads)
        sums = np.einsum("zkrm,znrk->znrm", left, right)
        self.backend.raw[self.op.target] = shift_right_half_up(sums, shift)

    def backward(
        self, reads: Sequence[Read], chain: Chain, shifts: Sequence[Ints], mixes: Mixes
    ) -> None:
        """Give each side in `mixes` its sums >> shift.

        Args:
            reads: How both sides were read.
            chain: How the target's gradient passes.
            shifts: Per side and channel.
            mixes: See `Mixes`.
        """
        op, backend = self.op, self.backend
        left, right = self._sides(reads)
        g = backend.passed(op.target, chain)
        sums = np.einsum("znrk,znrm->zkrm", right, g), np.einsum("znrm,zkrm->znrk", g, left)
        for side, mix in mixes.items():
            put_side(backend, op.sources[side], reads[side], sums[side], shifts[side], mix)

    def _sides(self, reads: Sequence[Read]) -> list[Array]:
        pairs = zip(self.op.sources, reads, strict=True)
        return [self.backend.read(source, read) for source, read in pairs]


class IntProduct(ctypes.Structure):
    """`struct int_product`."""

    _fields_ = (
        ("left", int_native.IntSide),
        ("right", int_native.IntSide),
        ("target", ctypes.POINTER(int_native.IntTensor)),
        ("chain", int_native.IntChain),
        ("rows", ctypes.c_int32),
        ("shift_out", ctypes.c_int32),
    )


class NativeProduct(NativeOp[Product]):
    """The same by kernels, a tile at a time."""

    def __init__(self, op: Product, number: int, backend: NativeBackend) -> None:
        super().__init__(op, number, backend)
        shapes = [backend.plan.tensors[each].shape for each in (*op.sources, op.target)]
        # Both sides as read, the gradient, and what a side gets.
        counts = [int(np.prod(shape)) for shape in shapes]
        backend.reserve(2 * backend.lanes * (sum(counts) + max(counts)))
        self._struct = IntProduct(
            target=ctypes.pointer(backend.tensors[op.target]), rows=shapes[2][1]
        )
        parts = zip((self._struct.left, self._struct.right), op.sources, strict=True)
        self._sides = [Side(struct, source, backend) for struct, source in parts]

    def forward(self, reads: Sequence[Read], shift: int) -> None:
        """See `NumpyProduct.forward`."""
        backend = self.backend
        for side, read in zip(self._sides, reads, strict=True):
            side.reads(read)
        self._struct.shift_out = shift
        backend.kernels.int_product_forward(byref(self._struct), 0, backend.tiles, backend.scratch)

    def backward(
        self, reads: Sequence[Read], chain: Chain, shifts: Sequence[Ints], mixes: Mixes
    ) -> None:
        """See `NumpyProduct.backward`."""
        backend, self._struct.chain = self.backend, chain_struct(chain)
        for number, (side, read) in enumerate(zip(self._sides, reads, strict=True)):
            side.reads(read)
            if number in mixes:
                side.gets(shifts[number], mixes[number])
        backend.kernels.int_product_backward(byref(self._struct), 0, backend.tiles, backend.scratch)


INTEGER = IntegerFamily(IntegerProduct, NumpyProduct, NativeProduct)
