"""Norms within examples in integers; `fedkit.engine.integer.layer_norm` has their arithmetic.

What is normalised together is a block: a group of channels of an example, all of it, or all
channels of a place. Arrays of blocks are flat, [blocks of an example * examples].
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import byref, c_int32, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import K, shift_right_half_even, shift_right_half_up
from fedkit.engine.integer.constants import (
    CARRIED,
    CODE,
    ONE,
    WIDE,
    Carrier,
    Chain,
    Ints,
    Mix,
    Read,
    Reals,
    chain_constants,
    multiplier,
    to_int32,
)
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.layer_norm import (
    FACTOR_SHIFT,
    HAT_BITS,
    SCALE_SHIFT,
    Centring,
    Deviation,
    Scale,
    centring_of,
    deviation_constants,
    most_of,
    reciprocal,
    stack,
)
from fedkit.engine.integer.native_backend import (
    NativeBackend,
    NativeOp,
    address,
    chain_struct,
    read_struct,
)
from fedkit.engine.integer.numpy_backend import Array, NumpyBackend, NumpyOp, pass_through
from fedkit.engine.kernels import int_native
from fedkit.engine.kernels.structs import pointer
from fedkit.engine.plan.channel_norm import ChannelNorm
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.layer_norm import BlocksOfExample, ExampleNorm
from fedkit.engine.plan.structure import Plan

Sums = NDArray[np.int64]
BlockNorm = ExampleNorm | ChannelNorm


def _blocks(op: BlockNorm, plan: Plan) -> BlocksOfExample:
    return op.blocks(plan.tensors[op.source].shape)


# Units


class IntegerLayerNorm(IntegerOp[BlockNorm]):
    """Normalises each block by an integer division of its own."""

    finer_bits = 8
    compute: NumpyLayerNorm | NativeLayerNorm

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op, blocks = self.op, _blocks(self.op, units.plan)
        most, l1 = most_of(blocks.size), blocks.l1
        unit = units.worth[op.source].bound / most
        read = units.read(op.source, unit, most)
        self.reading = read, unit
        how = deviation_constants(l1, blocks.size, op.eps / (unit if l1 else unit**2))
        scale, codes = self._scale(units)
        found, shift = self.compute.forward(read, how, scale)
        inverse = np.ldexp(found.astype(np.float64), -shift - HAT_BITS) / unit
        # Where eps is far beyond what is normalised it was cut off.
        self._inverse = np.minimum(inverse, 1.0 / (op.eps if l1 else math.sqrt(op.eps)))
        units.raw_unit[op.target] = np.ldexp(codes, -self.finer_bits)

    def _scale(self, units: Units) -> tuple[Scale, Reals]:
        """Return how normalised values become raw, and per channel what a code is worth then.

        Codes have 4 bits behind the point where a channel's largest scale is 1, and no offset.
        """
        (weight, weight_point), (bias, bias_point) = (
            self._elements(units, name, default)
            for name, default in ((self.op.weight, 1), (self.op.bias, 0))
        )
        largest = [
            np.ldexp(np.abs(part).max(1).astype(np.float64), -point)
            for part, point in ((weight, weight_point), (bias, bias_point))
        ]
        codes = largest[0] * ONE + largest[1] / CODE
        # As for a layer's weights: a channel of zeros has codes 0 at any scale.
        positive = codes[codes > 0]
        codes = np.where(codes > 0, codes, positive.min() if positive.size else 1.0)
        raw = np.ldexp(1.0 / codes, SCALE_SHIFT + self.finer_bits)
        a = _scaled(weight, np.ldexp(raw, -HAT_BITS - weight_point))
        return Scale(a, _scaled(bias, np.ldexp(raw, -bias_point))), codes

    def _elements(
        self, units: Units, name: str | None, default: int
    ) -> tuple[NDArray[np.int64], int]:
        """Return a parameter's fixed-point values, and their point.

        They are int64 [channels, plane], or [channels, 1] of those per channel.
        """
        shape = units.plan.tensors[self.op.target].shape
        if name is None:
            plane = 1 if self.op.per_channel else math.prod(shape[1:])
            return np.full((shape[0], plane), default, np.int64), 0
        whole = units.network.part(name, units.network.weights).astype(np.int64)
        return whole.reshape(shape[0], -1), units.network.points[name]

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        op, (read, _) = self.op, self.reading
        unit = np.maximum(units.passed_bound(op.target), LEAST) / WIDE
        chain = units.chain_in(op.target, unit, WIDE)
        # Of the normalised values, under one scale for all elements of a block.
        weight, point = self._elements(units, op.weight, 1)
        top = float((np.ldexp(np.abs(weight).max(1).astype(np.float64), -point) * unit).max())
        top = max(top, LEAST / WIDE)
        factor = _scaled(weight, np.ldexp(unit / top, FACTOR_SHIFT - point))
        per_element, sums, peak = self.compute.sums(read, chain, factor)
        for name, gradient, worth in (
            (op.weight, per_element[:, 0], np.ldexp(unit, -HAT_BITS)),
            (op.bias, per_element[:, 1], unit),
        ):
            if name:
                units.network.part(name, units.gradient)[:] = gradient
                units.gradient_units[name] = worth
        for contribution in given:
            out, slope = self._out(units, sums.astype(np.float64), peak, top)
            mix = units.give(contribution, slope)
            self.compute.backward(read, chain, factor, out, mix)

    def _out(self, units: Units, sums: Reals, peak: Ints, unit: float) -> tuple[Chain, Slope]:
        """Return how each block's gradient passes through its norm, and what comes out.

        Args:
            units: The program.
            sums: As of `NumpyLayerNorm.sums`.
            peak: Likewise.
            unit: What 1 is worth of them.
        """
        blocks = _blocks(self.op, units.plan)
        mean, carried, sign = sums.T / blocks.size
        mean = mean if blocks.centred else np.zeros_like(mean)
        a = self._inverse * unit
        b = -a * np.ldexp(carried, -HAT_BITS)
        carrier: Carrier = "hat"
        if blocks.l1:
            b, carrier = b * K, "sign"
            c = -a * mean - b * sign
        else:
            b, c = np.ldexp(b, -HAT_BITS), -a * mean
        most = peak.astype(np.float64)
        reach = np.abs(a) * most + np.abs(b) * CARRIED[carrier] + np.abs(c)
        result = max(float(reach.max()), LEAST) / WIDE
        a, b, c = (part / result for part in (a, b, c))
        out = chain_constants(a, b, c, carrier, most, WIDE, key=units.key(self.number))
        return out, Slope.whole(np.full(units.channels(self.op.source), result))


def _scaled(whole: NDArray[np.int64], factor: Reals) -> Ints:
    """Return int64 [channels, n] times a factor per channel, rounded, int32 [channels * n]."""
    m, shift = multiplier(factor, 62, 2**31 - 1)
    scaled = shift_right_half_up(whole * m.astype(np.int64)[:, None], shift[:, None])
    return to_int32(np.clip(scaled, -(2**30), 2**30).ravel())


# In numpy


class NumpyLayerNorm(NumpyOp[BlockNorm]):
    """Keeps how each block was normalised."""

    centring: Centring

    def __init__(self, op: BlockNorm, number: int, backend: NumpyBackend) -> None:
        super().__init__(op, number, backend)
        self.together = _blocks(op, backend.plan)

    def forward(self, read: Read, how: Deviation, scale: Scale) -> tuple[Ints, Ints]:
        """Normalise each block of read(x), and write raw = (a * hat + b + half) >> shift.

        Returns:
            Per block the multiplier and the shift of `layer_norm.reciprocal`.
        """
        backend = self.backend
        v = self._blocks(backend.read(self.op.source, read))
        count, totals = v.shape[1], v.sum(1) * self.together.centred
        if how.l1:
            sizes = np.abs(count * v - totals[:, None]).sum(1)
        else:
            sizes = count * np.square(v).sum(1) - np.square(totals)
        found = [reciprocal(size, how) for size in sizes.tolist()]
        rows = zip(totals.tolist(), found, strict=True)
        self.centring = Centring(
            *stack([centring_of(total, *inverse, count) for total, inverse in rows])
        )
        hat = self.hat(read)
        y = self._elements(scale.a, hat) * hat + self._elements(scale.b, hat)
        backend.raw[self.op.target] = np.clip(shift_right_half_up(y, SCALE_SHIFT), -WIDE, WIDE)
        found_multiplier, shift = stack(found)
        return found_multiplier, shift

    def sums(self, read: Read, chain: Chain, factor: Ints) -> tuple[Sums, Sums, Ints]:
        """Sum what the backward pass needs, of the target's passed gradient p.

        Args:
            read: How its source was read.
            chain: How the target's gradient passes.
            factor: t = factor * p >> shift, rounded half to even, is the gradient of hat; int32
                [elements], or [channels] where parameters are per channel.

        Returns:
            Per element, or channel, the sums over the examples of p * hat and p, int64 [.., 2]; per
            block the sums of t, t * hat and the sign of hat, int64 [blocks, 3]; and the largest
            |t| of each, int32 [blocks].
        """
        hat = self.hat(read)
        p, t = self.backend.passed(self.op.target, chain), self._factored(chain, factor, hat)
        over = (0, 2, 3) if self.op.per_channel else 0
        per_element = [(p * hat).sum(over).ravel(), p.sum(over).ravel()]
        per_block = [self._blocks(part).sum(1) for part in (t, t * hat, np.sign(hat))]
        peak = to_int32(np.abs(self._blocks(t)).max(1))
        return np.stack(per_element, 1), np.stack(per_block, 1), peak

    def backward(self, read: Read, chain: Chain, factor: Ints, out: Chain, mix: Mix | None) -> None:
        """Give t, as `out` passes it block by block, to the source."""
        hat = self.hat(read)
        t = self._factored(chain, factor, hat)
        carried = np.sign(hat) if out.carrier == "sign" else hat
        self.backend.put(self.op.source, pass_through(t, carried, out, self._spread), mix)

    def hat(self, read: Read) -> Array:
        """Return the normalised values, [n, channels, height, width]."""
        how, spread = self.centring, self._spread
        centred = self.backend.read(self.op.source, read) - spread(how.centre)
        scaled = spread(how.a) * centred + spread(how.b)
        return np.clip(shift_right_half_up(scaled, spread(how.shift)), -WIDE, WIDE)

    def _factored(self, chain: Chain, factor: Ints, hat: Array) -> Array:
        """Return the gradient of the normalised values, 0 where they were cut off."""
        p = self.backend.passed(self.op.target, chain)
        scaled = self._elements(factor, p) * p
        t = np.clip(shift_right_half_even(scaled, FACTOR_SHIFT), -WIDE, WIDE)
        return np.where(np.abs(hat) < WIDE, t, 0)

    def _elements(self, values: Ints, like: Array) -> Array:
        """Return values per element, or per channel, along the axes of an example."""
        shape = (-1, 1, 1) if self.op.per_channel else like.shape[1:]
        return values.astype(np.int64).reshape(shape)

    def _blocks(self, values: Array) -> Array:
        """Return [n, channels, height, width] as [blocks, values of each]."""
        if self.together.places:
            return values.transpose(2, 3, 0, 1).reshape(-1, values.shape[1])
        parted = values.reshape(len(values), self.together.count, -1)
        return parted.swapaxes(0, 1).reshape(-1, parted.shape[2])

    def _spread(self, values: NDArray[Any]) -> Array:
        """Return values per block along the axes of examples."""
        count, (channels, *plane) = (
            self.together.count,
            self.backend.plan.tensors[self.op.source].shape,
        )
        of_each = values.astype(np.int64).reshape(count, -1).T
        if self.together.places:
            return of_each.reshape(-1, 1, *plane)
        return np.repeat(of_each, channels // count, axis=1)[:, :, None, None]


# By the compiled kernels


class IntLayer(ctypes.Structure):
    """`struct int_layer`."""

    _fields_ = (
        ("source", ctypes.POINTER(int_native.IntTensor)),
        ("target", ctypes.POINTER(int_native.IntTensor)),
        ("read", int_native.IntRead),
        ("chain", int_native.IntChain),
        ("out", int_native.IntChain),
        ("mix", int_native.IntMix),
        ("scale", c_void_p),
        ("offset", c_void_p),
        ("factor", c_void_p),
        ("multiplier", c_void_p),
        ("inverse_shift", c_void_p),
        ("centre", c_void_p),
        ("a", c_void_p),
        ("b", c_void_p),
        ("shift", c_void_p),
        ("eps", ctypes.c_int64),
        ("numerator", c_int32),
        ("exponent", c_int32),
        ("blocks", c_int32),
        ("places", c_int32),
        ("per_channel", c_int32),
        ("centred", c_int32),
        ("l1", c_int32),
        ("accumulate", c_int32),
    )


_PER_BLOCK = ("multiplier", "inverse_shift", "centre", "a", "b", "shift")


class NativeLayerNorm(NativeOp[BlockNorm]):
    """Keeps how each block was normalised, int32 [6, blocks * lanes of all tiles]."""

    def __init__(self, op: BlockNorm, number: int, backend: NativeBackend) -> None:
        super().__init__(op, number, backend)
        together = _blocks(op, backend.plan)
        self._count = together.count
        lanes = together.count * backend.most_tiles * backend.lanes
        self._lanes = np.zeros((len(_PER_BLOCK), lanes), np.int32)
        rows = zip(_PER_BLOCK, self._lanes, strict=True)
        self._struct = IntLayer(
            source=ctypes.pointer(backend.tensors[op.source]),
            target=ctypes.pointer(backend.tensors[op.target]),
            blocks=together.count,
            places=together.places,
            per_channel=op.per_channel,
            centred=together.centred,
            l1=together.l1,
            **{name: pointer(row) for name, row in rows},
        )

    def forward(self, read: Read, how: Deviation, scale: Scale) -> tuple[Ints, Ints]:
        """See `NumpyLayerNorm.forward`."""
        layer, backend = self._struct, self.backend
        layer.read, layer.eps = read_struct(read), how.eps
        layer.numerator, layer.exponent = how.numerator, how.exponent
        layer.scale, layer.offset = pointer(scale.a), pointer(scale.b)
        backend.kernels.int_layer_forward(byref(layer), 0, backend.tiles)
        count, lanes = self._count, backend.tiles * backend.lanes
        kept = self._lanes[:2, : count * lanes].reshape(2, count, lanes)
        found_multiplier, shift = kept[..., : backend.examples].reshape(2, -1)
        return found_multiplier, shift

    def sums(self, read: Read, chain: Chain, factor: Ints) -> tuple[Sums, Sums, Ints]:
        """See `NumpyLayerNorm.sums`."""
        backend = self.backend
        self._take(read, chain, factor)
        elements = np.zeros((len(factor), 2), np.int64)
        count = self._count * backend.examples
        blocks, peak = np.zeros((count, 3), np.int64), np.zeros(count, np.int32)
        arrays = (address(array) for array in (elements, blocks, peak))
        backend.kernels.int_layer_sums(byref(self._struct), 0, backend.tiles, *arrays)
        return elements, blocks, peak

    def backward(self, read: Read, chain: Chain, factor: Ints, out: Chain, mix: Mix | None) -> None:
        """See `NumpyLayerNorm.backward`."""
        layer, backend = self._struct, self.backend
        self._take(read, chain, factor)
        layer.out = chain_struct(out)
        self.set_mix(layer, self.op.source, mix)
        backend.kernels.int_layer_backward(byref(layer), 0, backend.tiles)

    def _take(self, read: Read, chain: Chain, factor: Ints) -> None:
        layer = self._struct
        layer.read, layer.chain = read_struct(read), chain_struct(chain)
        layer.factor = pointer(factor)


INTEGER = IntegerFamily(IntegerLayerNorm, NumpyLayerNorm, NativeLayerNorm)
