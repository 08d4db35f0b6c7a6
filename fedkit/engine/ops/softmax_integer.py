"""Softmax over the channels of each place in integers, by `integer.softmax_shares`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref

import numpy as np

from fedkit.core.numerics import shift_right_half_even
from fedkit.engine.integer.constants import WIDE, Chain, Ints, Mix, Read, shift_to_fit, to_int32
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.native_backend import (
    NativeBackend,
    NativeOp,
    address,
    chain_struct,
    read_struct,
)
from fedkit.engine.integer.numpy_backend import Array, NumpyOp, across
from fedkit.engine.integer.softmax_shares import MOST_BITS, MOST_SCORE, SoftmaxShares, shares_of
from fedkit.engine.kernels import int_native
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.softmax import SoftmaxOp

_TOP_BITS = 15


class IntegerSoftmax(IntegerOp[SoftmaxOp]):
    """Reads and writes with 14 bits; the slopes' largest value decides their unit."""

    compute: NumpySoftmax | NativeSoftmax

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        unit = units.worth[op.source].bound / MOST_SCORE
        self.reading = units.read(op.source, unit, MOST_SCORE), unit
        self._shares = shares_of(unit, _TOP_BITS, MOST_BITS)
        self.compute.forward(self.reading[0], self._shares)
        units.raw_unit[op.target] = np.full(units.channels(op.target), 2.0**-MOST_BITS)

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        for contribution in given:
            bound = units.passed_bound(self.op.target)
            unit = np.full(len(bound), max(float(bound.max()), LEAST) / WIDE)
            chain = units.chain_in(self.op.target, unit, WIDE)
            peak = self.compute.peak(self.reading[0], self._shares, chain)
            shift = shift_to_fit(peak.astype(np.float64))
            most = np.ceil(np.ldexp(peak.astype(np.float64), -shift))
            slope = Slope(np.ldexp(unit, shift - MOST_BITS), np.minimum(most, WIDE))
            mix = units.give(contribution, slope)
            self.compute.backward(self.reading[0], self._shares, chain, shift, mix)


class NumpySoftmax(NumpyOp[SoftmaxOp]):
    """Computes the shares anew in the backward pass."""

    def forward(self, read: Read, shares: SoftmaxShares) -> None:
        """Write raw: the shares."""
        self.backend.raw[self.op.target] = self._of(read, shares)

    def peak(self, read: Read, shares: SoftmaxShares, chain: Chain) -> Ints:
        """Return per channel the largest magnitude of the slopes."""
        return to_int32(np.abs(self._slopes(read, shares, chain)).max((0, 2, 3)))

    def backward(
        self, read: Read, shares: SoftmaxShares, chain: Chain, shift: Ints, mix: Mix | None
    ) -> None:
        """Give the slopes >> shift, rounded half to even."""
        slopes = self._slopes(read, shares, chain)
        by = np.broadcast_to(across(shift), slopes.shape)
        self.backend.put(self.op.source, shift_right_half_even(slopes, by), mix)

    def _of(self, read: Read, shares: SoftmaxShares) -> Array:
        scores = np.moveaxis(self.backend.read(self.op.source, read), 1, -1)
        return np.moveaxis(shares.of(scores), -1, 1)

    def _slopes(self, read: Read, shares: SoftmaxShares, chain: Chain) -> Array:
        """Return share * (g - mean of g by the shares), [n, channels, height, width]."""
        share, g = self._of(read, shares), self.backend.passed(self.op.target, chain)
        mean = shift_right_half_even((share * g).sum(1, keepdims=True), shares.bits)
        return np.asarray(share * np.clip(g - mean, -WIDE, WIDE))


class IntSoftmax(ctypes.Structure):
    """`struct int_softmax`."""

    _fields_ = (
        ("source", ctypes.POINTER(int_native.IntTensor)),
        ("target", ctypes.POINTER(int_native.IntTensor)),
        ("read", int_native.IntRead),
        ("chain", int_native.IntChain),
        ("mix", int_native.IntMix),
        ("shares", int_native.IntShares),
        ("shift_in", ctypes.c_void_p),
        ("accumulate", ctypes.c_int32),
    )


class NativeSoftmax(NativeOp[SoftmaxOp]):
    """The same by kernels, a place at a time."""

    def __init__(self, op: SoftmaxOp, number: int, backend: NativeBackend) -> None:
        super().__init__(op, number, backend)
        channels = backend.plan.tensors[op.target].shape[0]
        backend.reserve(2 * 2 * channels * backend.lanes)  # int16, shares and gradients
        self._struct = IntSoftmax(
            source=ctypes.pointer(backend.tensors[op.source]),
            target=ctypes.pointer(backend.tensors[op.target]),
        )

    def forward(self, read: Read, shares: SoftmaxShares) -> None:
        """See `NumpySoftmax.forward`."""
        self._struct.read = read_struct(read)
        self._struct.shares = int_native.IntShares(*vars(shares).values())
        self.backend.kernels.int_softmax_forward(
            byref(self._struct), 0, self.backend.tiles, self.backend.scratch
        )

    def peak(self, read: Read, shares: SoftmaxShares, chain: Chain) -> Ints:
        """See `NumpySoftmax.peak`."""
        struct, peak = self._struct, self.backend.zeros(self.op.target, np.int32)
        struct.chain = chain_struct(chain)
        self.backend.kernels.int_softmax_peak(
            byref(struct), 0, self.backend.tiles, self.backend.scratch, address(peak)
        )
        return peak

    def backward(
        self, read: Read, shares: SoftmaxShares, chain: Chain, shift: Ints, mix: Mix | None
    ) -> None:
        """See `NumpySoftmax.backward`."""
        struct = self._struct
        struct.chain, struct.shift_in = chain_struct(chain), address(shift)
        self.set_mix(struct, self.op.source, mix)
        self.backend.kernels.int_softmax_backward(
            byref(struct), 0, self.backend.tiles, self.backend.scratch
        )


INTEGER = IntegerFamily(IntegerSoftmax, NumpySoftmax, NativeSoftmax)
