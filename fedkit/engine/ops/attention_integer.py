"""Attention by heads in integers: what it multiplies are codes of few bits.

Queries, keys and values are read with the bits of layers. A query's weights are codes of as many
bits, 2^-octaves below its largest score, which become shares of 14 bits by one division of their
sum (`integer.softmax_shares`). Backward, gradients of the target and of the scores are rounded at
random to as few bits by the gradient rule, to which a row of scores is a channel. No weight is kept
between the passes.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import byref, c_int32, c_void_p
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedkit.core.numerics import derive_key, shift_right_half_even, shift_right_half_up
from fedkit.engine.integer.constants import (
    WIDE,
    Chain,
    Ints,
    Read,
    Reals,
    chain_constants,
    shift_to_fit,
    shift_to_fit_all,
    to_int32,
)
from fedkit.engine.integer.integer_op import IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.native_backend import NativeBackend, NativeOp, address, chain_struct
from fedkit.engine.integer.numpy_backend import Array, NumpyOp, pass_through
from fedkit.engine.integer.softmax_shares import MOST_BITS, MOST_SCORE, SoftmaxShares, shares_of
from fedkit.engine.kernels import int_native
from fedkit.engine.kernels.structs import pointer
from fedkit.engine.ops.sides_integer import Mixes, Side, check_products, most, put_side
from fedkit.engine.plan.attention import AttentionOp
from fedkit.engine.plan.execution import Contribution, sides

_QUERY, _KEY, _VALUE = range(3)


@dataclass(frozen=True)
class Weighing:
    """How scores become weights.

    Attributes:
        reads: Of queries, keys and values.
        score_shift: From a sum to a score.
        sign: Of the scale, 1 or -1.
        shares: Of a query.
        out_shift: From a sum of weighed values to raw.
    """

    reads: tuple[Read, Read, Read]
    score_shift: int
    sign: int
    shares: SoftmaxShares
    out_shift: int


@dataclass(frozen=True)
class WeightSlopes:
    """How the target's gradient becomes the slopes of weights.

    Attributes:
        chain: How it passes.
        shift: From a sum of gradient times value to a slope.
    """

    chain: Chain
    shift: int


@dataclass(frozen=True)
class SlopeRows:
    """How the slopes of scores become codes; arrays are [heads * queries].

    Attributes:
        shift: Narrows to 15 bits, rounded half to even.
        chain: Makes codes of that.
    """

    shift: Ints
    chain: Chain


class AttentionSizes(NamedTuple):
    """Sizes of an attention."""

    heads: int
    size: int
    value_size: int
    queries: int
    keys: int


def _sizes(op: AttentionOp, shapes: Sequence[tuple[int, int, int]]) -> AttentionSizes:
    query, key, value = shapes
    each = query[0] // op.heads, value[0] // op.heads
    return AttentionSizes(op.heads, *each, math.prod(query[1:]), math.prod(key[1:]))


# Units


class IntegerAttention(IntegerOp[AttentionOp]):
    """Chooses the units of scores, weights and slopes."""

    compute: NumpyAttention | NativeAttention

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        sizes = self._sizes = _sizes(op, [units.plan.tensors[t].shape for t in op.sources])
        found = [units.layer_read(self.number, source) for source in op.sources]
        query, key, value = (read for read, _ in found)
        self._units = [unit for _, unit in found]
        # As differences of two scores fit int16, a bound of twice the sums is taken.
        bound = sizes.size * most(query) * most(key)
        check_products(2 * bound, f"attention {self.number}")
        score_shift = shift_to_fit_all(bound * (WIDE / MOST_SCORE))
        worth = self._units[_QUERY] * self._units[_KEY] * abs(op.scale) * 2.0**score_shift
        # So that sums over all queries, times a gradient of 7 bits, fit int32.
        bits = min(MOST_BITS, 23 - sizes.queries.bit_length())
        top_bits = units.network.layer_bits(self.number)
        shares = shares_of(worth, top_bits, bits)
        out_shift = shift_to_fit_all(most(value) * (2.0**bits + sizes.keys))
        sign = -1 if op.scale < 0 else 1
        self._how = Weighing((query, key, value), score_shift, sign, shares, out_shift)
        self.compute.forward(self._how)
        unit = self._units[_VALUE] * 2.0 ** (out_shift - bits)
        units.raw_unit[op.target] = np.full(units.channels(op.target), unit)

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        if not given:
            return
        op, sizes, how = self.op, self._sizes, self._how
        bits, key = units.network.layer_bits(self.number), units.key(self.number)
        high = 2 ** (bits - 1) - 1
        factor, unit = units.scaled_gradient(units.passed_range(op.target), bits)
        chain = units.chain_in(op.target, unit * factor, high, to_int32(factor), key)
        largest = high * float(factor.max())
        shift = self._checked(sizes.value_size * largest * most(how.reads[_VALUE]))
        slopes = WeightSlopes(chain, shift)
        row_peaks, column_peaks = self.compute.peaks(how, slopes)
        worth = unit * self._units[_VALUE] * 2.0 ** (shift - how.shares.bits)
        rows, row_units, row_most = self._rows(units, row_peaks, worth, bits, derive_key(key, 1))
        # Per head: what a sum may reach, and what 1 of it is worth.
        scale = row_units * abs(op.scale)
        sums = (
            (row_most * sizes.keys * most(how.reads[_KEY]), scale * self._units[_KEY]),
            (row_most * sizes.queries * most(how.reads[_QUERY]), scale * self._units[_QUERY]),
            (column_peaks * largest, np.full(sizes.heads, unit * 2.0**-how.shares.bits)),
        )
        shifts, worths = self._narrowed(units, sums)
        mixes = {
            side: units.give(contribution, Slope.whole(worths[side]))
            for side, contribution in sides(op, given)
        }
        self.compute.backward(how, slopes, rows, shifts, mixes)

    def _narrowed(
        self, units: Units, sums: Sequence[tuple[Reals, Reals]]
    ) -> tuple[list[Ints], list[Reals]]:
        """Return per source and channel by what its sums are shifted, and what 1 is worth then.

        Args:
            units: The program.
            sums: Per source and head what a sum may reach, and what 1 is worth of it.
        """
        shifts, worths = [], []
        for source, (bound, unit) in zip(self.op.sources, sums, strict=True):
            check_products(bound, f"attention {self.number}")
            shift, size = shift_to_fit(bound), units.channels(source) // self.op.heads
            shifts.append(np.repeat(shift, size))
            worths.append(np.repeat(np.ldexp(unit, shift), size))
        return shifts, worths

    def _rows(
        self, units: Units, peaks: Reals, worth: float, bits: int, key: int
    ) -> tuple[SlopeRows, Reals, Reals]:
        """Return how slopes become codes, and per head what 1 is worth and the largest.

        Args:
            units: The program.
            peaks: Largest magnitudes, [heads, queries].
            worth: Of 1 of a slope.
            bits: Of codes.
            key: Of random rounding.
        """
        found = [units.scaled_gradient(row * worth, bits) for row in peaks]
        factor, unit = np.stack([each for each, _ in found]), np.array([u for _, u in found])
        shift = shift_to_fit(peaks.ravel())
        high = 2 ** (bits - 1) - 1
        a = np.ldexp(worth, shift) / (factor * unit[:, None]).ravel()
        none, narrowed = np.zeros(a.size), np.ceil(np.ldexp(peaks.ravel(), -shift))
        chain = chain_constants(
            a, none, none, "none", narrowed, high, to_int32(factor.ravel()), key
        )
        return SlopeRows(shift, chain), unit, high * factor.max(1)

    def _checked(self, bound: float) -> int:
        check_products(bound, f"attention {self.number}")
        return shift_to_fit_all(bound)


# In numpy


class NumpyAttention(NumpyOp[AttentionOp]):
    """Computes the weights of all places with all anew in each pass."""

    def forward(self, how: Weighing) -> None:
        """Write raw = (weights times values + half) >> out_shift."""
        shares, (*_, value) = self._shares(how), self._heads(how)
        sums = np.einsum("zhqk,zhck->zhcq", shares, value)
        shape = (len(sums), *self.backend.plan.tensors[self.op.target].shape)
        raw = shift_right_half_up(sums, how.out_shift)
        self.backend.raw[self.op.target] = raw.reshape(shape)

    def peaks(self, how: Weighing, slopes: WeightSlopes) -> tuple[Reals, Reals]:
        """Return what decides units of gradients.

        Args:
            how: As of the forward pass.
            slopes: Of weights.

        Returns:
            The largest magnitude of a score's slope, [heads, queries]; and the largest sum of the
            weights that a key gets of all queries, [heads].
        """
        shares = self._shares(how)
        found = self._slopes(how, shares, slopes)
        rows = np.abs(found).max((0, 3)).astype(np.float64)
        return rows, shares.sum(2).max((0, 2)).astype(np.float64)

    def backward(
        self,
        how: Weighing,
        slopes: WeightSlopes,
        rows: SlopeRows,
        shifts: Sequence[Ints],
        mixes: Mixes,
    ) -> None:
        """Give queries, keys and values in `mixes` their sums >> shift.

        Args:
            how: As of the forward pass.
            slopes: As of `peaks`.
            rows: How the slopes of scores become codes.
            shifts: Per source and channel.
            mixes: See `Mixes`.
        """
        op, backend, (query, key, _) = self.op, self.backend, self._heads(how)
        shares = self._shares(how)
        found = self._slopes(how, shares, slopes)
        heads, queries = found.shape[1:3]
        by = np.broadcast_to(_of_rows(rows.shift, heads, queries), found.shape)
        narrow = shift_right_half_even(found, by)
        codes = pass_through(narrow, None, rows.chain, lambda a: _of_rows(a, heads, queries))
        sums = (
            np.einsum("zhqk,zhck->zhcq", codes, key),
            np.einsum("zhqk,zhcq->zhck", codes, query),
            np.einsum("zhqk,zhcq->zhck", shares, self._gradient(slopes.chain)),
        )
        for side, mix in mixes.items():
            source = op.sources[side]
            shape = (len(found), *backend.plan.tensors[source].shape)
            put_side(backend, source, how.reads[side], sums[side].reshape(shape), shifts[side], mix)

    def _heads(self, how: Weighing) -> list[Array]:
        """Return queries, keys and values as read, [n, heads, channels of a head, places]."""
        pairs = zip(self.op.sources, how.reads, strict=True)
        return [self._by_head(self.backend.read(source, read)) for source, read in pairs]

    def _gradient(self, chain: Chain) -> Array:
        return self._by_head(self.backend.passed(self.op.target, chain))

    def _by_head(self, x: Array) -> Array:
        n, channels, height, width = x.shape
        return x.reshape(n, self.op.heads, channels // self.op.heads, height * width)

    def _shares(self, how: Weighing) -> Array:
        """Return the weights of keys for queries, [n, heads, queries, keys]."""
        query, key, _ = self._heads(how)
        sums = how.sign * np.einsum("zhcq,zhck->zhqk", query, key)
        scores, seen = shift_right_half_up(sums, how.score_shift), None
        if self.op.causal:
            queries, keys = scores.shape[2:]
            seen = np.tri(queries, keys, dtype=np.bool_)
        return how.shares.of(scores, seen)

    def _slopes(self, how: Weighing, shares: Array, slopes: WeightSlopes) -> Array:
        """Return share * (g - mean of g by the shares) of each score."""
        *_, value = self._heads(how)
        sums = np.einsum("zhcq,zhck->zhqk", self._gradient(slopes.chain), value)
        g = shift_right_half_even(sums, slopes.shift)
        mean = shift_right_half_even((shares * g).sum(-1, keepdims=True), how.shares.bits)
        return np.asarray(how.sign * shares * np.clip(g - mean, -WIDE, WIDE))


def _of_rows(values: Ints, heads: int, queries: int) -> Array:
    """Return [heads * queries] along the axes of weights."""
    return values.astype(np.int64).reshape(heads, queries, 1)


# By the compiled kernels


class IntAttention(ctypes.Structure):
    """`struct int_attention`."""

    _fields_ = (
        ("query", int_native.IntSide),
        ("key", int_native.IntSide),
        ("value", int_native.IntSide),
        ("target", ctypes.POINTER(int_native.IntTensor)),
        ("chain", int_native.IntChain),
        ("shares", int_native.IntShares),
        ("rows", int_native.IntChain),
        ("row_shift", c_void_p),
        ("heads", c_int32),
        ("causal", c_int32),
        ("sign", c_int32),
        ("score_shift", c_int32),
        ("out_shift", c_int32),
        ("slope_shift", c_int32),
    )


class NativeAttention(NativeOp[AttentionOp]):
    """The same by kernels, a head of a tile at a time."""

    def __init__(self, op: AttentionOp, number: int, backend: NativeBackend) -> None:
        super().__init__(op, number, backend)
        sizes = self._sizes = _sizes(op, [backend.plan.tensors[t].shape for t in op.sources])
        _, size, value_size, queries, keys = sizes
        # Queries, keys, values and gradients; weights and slopes; and what a source gets.
        counts = size * queries, (size + value_size) * keys, value_size * queries
        given = max(size, value_size) * max(queries, keys)
        backend.reserve(2 * backend.lanes * (sum(counts) + 2 * queries * keys + given))
        self._struct = IntAttention(
            target=ctypes.pointer(backend.tensors[op.target]),
            heads=op.heads,
            causal=op.causal,
        )
        structs = (self._struct.query, self._struct.key, self._struct.value)
        parts = zip(structs, op.sources, strict=True)
        self._sides = [Side(struct, source, backend) for struct, source in parts]

    def forward(self, how: Weighing) -> None:
        """See `NumpyAttention.forward`."""
        backend = self.backend
        self._take(how)
        backend.kernels.int_attention_forward(
            byref(self._struct), 0, backend.tiles, backend.scratch
        )

    def peaks(self, how: Weighing, slopes: WeightSlopes) -> tuple[Reals, Reals]:
        """See `NumpyAttention.peaks`."""
        backend, sizes = self.backend, self._sizes
        self._take(how, slopes)
        rows = np.zeros((sizes.heads, sizes.queries), np.int32)
        columns = np.zeros(sizes.heads, np.int32)
        backend.kernels.int_attention_peaks(
            *(byref(self._struct), 0, backend.tiles, backend.scratch),
            *(address(rows), address(columns)),
        )
        return rows.astype(np.float64), columns.astype(np.float64)

    def backward(
        self,
        how: Weighing,
        slopes: WeightSlopes,
        rows: SlopeRows,
        shifts: Sequence[Ints],
        mixes: Mixes,
    ) -> None:
        """See `NumpyAttention.backward`."""
        backend, struct = self.backend, self._struct
        self._take(how, slopes)
        struct.rows, struct.row_shift = chain_struct(rows.chain), pointer(rows.shift)
        for number, mix in mixes.items():
            self._sides[number].gets(shifts[number], mix)
        backend.kernels.int_attention_backward(byref(struct), 0, backend.tiles, backend.scratch)

    def _take(self, how: Weighing, slopes: WeightSlopes | None = None) -> None:
        struct = self._struct
        if slopes is not None:
            struct.chain, struct.slope_shift = chain_struct(slopes.chain), slopes.shift
        for side, read in zip(self._sides, how.reads, strict=True):
            side.reads(read)
        struct.shares = int_native.IntShares(*vars(how.shares).values())
        struct.score_shift, struct.sign = how.score_shift, how.sign
        struct.out_shift = how.out_shift


INTEGER = IntegerFamily(IntegerAttention, NumpyAttention, NativeAttention)
