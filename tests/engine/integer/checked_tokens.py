"""Ops of tokens in numpy, beside their slow references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedkit.engine.integer.constants import Chain, Ints, Mix, Read
from fedkit.engine.integer.softmax_shares import SoftmaxShares
from fedkit.engine.ops.attention_integer import NumpyAttention, SlopeRows, Weighing, WeightSlopes
from fedkit.engine.ops.embedding_integer import NumpyEmbedding
from fedkit.engine.ops.product_integer import NumpyProduct
from fedkit.engine.ops.sides_integer import Mixes
from fedkit.engine.ops.softmax_integer import NumpySoftmax
from fedkit.engine.ops.spread_integer import NumpySpread, Values
from fedkit.engine.plan.attention import AttentionOp
from fedkit.engine.plan.embedding import Embedding
from fedkit.engine.plan.product import Product
from fedkit.engine.plan.softmax import SoftmaxOp
from fedkit.engine.plan.spread import Spread
from fedkit.engine.plan.structure import PlanOp
from tests.engine.integer.checked import Array, CheckedBackend, Sums
from tests.naive import attention as slow
from tests.naive import integers as naive


class Before:
    """What sources' gradients hold before an op adds to them, and what they get."""

    def __init__(self, backend: CheckedBackend, sources: Sequence[int]) -> None:
        self._backend, self._old = backend, {each: backend.g.get(each) for each in sources}

    def check(self, op: str, what: dict[int, tuple[int, Array]], mixes: Mixes) -> None:
        """Compare what tensors hold; what: side -> tensor and what it gets, in their order."""
        last = dict[int, Array]()
        for side, mix in mixes.items():
            tensor, new = what[side]
            if mix is not None:
                old = last.get(tensor, self._old[tensor])
                assert old is not None
                new = naive.mixed(old, new, mix)
            last[tensor] = new
        for tensor, expected in last.items():
            self._backend.check(f"gradient by {op}", self._backend.g[tensor], expected)


def given_of(sums: Array, shift: Ints, x: Array, read: Read) -> Array:
    return naive.unclipped(naive.narrowed(sums, shift, naive.half_even), x, read)


class CheckedAttention(NumpyAttention):
    backend: CheckedBackend

    def _slow_reads(self, how: Weighing) -> list[Array]:
        pairs = zip(self.op.sources, how.reads, strict=True)
        return [naive.read(self.backend.x[source], read) for source, read in pairs]

    def _slow_heads(self, how: Weighing) -> list[Array]:
        return [slow.by_head(x, self.op.heads) for x in self._slow_reads(how)]

    def _slow_shares(self, how: Weighing) -> Array:
        query, key, _ = self._slow_heads(how)
        sums = how.sign * slow.pairs(query, key)
        return slow.attention_shares(sums, how.score_shift, how.shares, self.op.causal)

    def _slow_slopes(self, how: Weighing, slopes: WeightSlopes) -> Array:
        g, (*_, value) = self._slow_gradient(slopes.chain), self._slow_heads(how)
        share = self._slow_shares(how)
        return slow.attention_slopes(
            share, slow.pairs(g, value), slopes.shift, how.shares.bits, how.sign
        )

    def _slow_gradient(self, chain: Chain) -> Array:
        return slow.by_head(self.backend.slowly_passed(self.op.target, chain), self.op.heads)

    def forward(self, how: Weighing) -> None:
        super().forward(how)
        (*_, value), raw = self._slow_heads(how), self.backend.raw[self.op.target]
        sums = slow.weighted(value, self._slow_shares(how))
        self.backend.check("attention", raw, naive.narrowed(sums, how.out_shift).reshape(raw.shape))

    def peaks(self, how: Weighing, slopes: WeightSlopes) -> Any:
        rows, columns = super().peaks(how, slopes)
        found, share = self._slow_slopes(how, slopes), self._slow_shares(how)
        self.backend.check("row peaks", rows, np.abs(found).max((0, 3)))
        self.backend.check("column peaks", columns, share.sum(2).max((0, 2)))
        return rows, columns

    def backward(
        self,
        how: Weighing,
        slopes: WeightSlopes,
        rows: SlopeRows,
        shifts: Sequence[Ints],
        mixes: Mixes,
    ) -> None:
        op, before = self.op, Before(self.backend, self.op.sources)
        query, key, _ = self._slow_heads(how)
        codes = np.zeros_like(found := self._slow_slopes(how, slopes))
        for position, at in enumerate(np.ndindex(*found.shape)):
            row = at[1] * found.shape[2] + at[2]
            narrow = naive.half_even(int(found[at]), int(rows.shift[row]))
            codes[at] = naive.pass_one(narrow, 0, rows.chain, row, position)
        columns = codes.swapaxes(2, 3)
        sums = (
            slow.weighted(key, codes),
            slow.weighted(query, columns),
            slow.weighted(self._slow_gradient(slopes.chain), self._slow_shares(how).swapaxes(2, 3)),
        )
        expected = {}
        for side, source in enumerate(op.sources):
            x = self._slow_reads(how)[side]
            given = given_of(sums[side].reshape(x.shape), shifts[side], x, how.reads[side])
            expected[side] = source, given
        super().backward(how, slopes, rows, shifts, mixes)
        before.check("attention", expected, mixes)


class CheckedProduct(NumpyProduct):
    backend: CheckedBackend

    def _slow_sides(self, reads: Sequence[Read]) -> list[Array]:
        pairs = zip(self.op.sources, reads, strict=True)
        return [naive.read(self.backend.x[source], read) for source, read in pairs]

    def forward(self, reads: Sequence[Read], shift: int) -> None:
        super().forward(reads, shift)
        sums = slow.product(*self._slow_sides(reads))
        self.backend.check("product", self.backend.raw[self.op.target], naive.narrowed(sums, shift))

    def backward(
        self, reads: Sequence[Read], chain: Chain, shifts: Sequence[Ints], mixes: Mixes
    ) -> None:
        before, both = Before(self.backend, self.op.sources), self._slow_sides(reads)
        p = self.backend.slowly_passed(self.op.target, chain)
        sums = slow.product_backward(both[0], both[1], p)
        expected = {
            side: (source, given_of(sums[side], shifts[side], both[side], reads[side]))
            for side, source in enumerate(self.op.sources)
        }
        super().backward(reads, chain, shifts, mixes)
        before.check("product", expected, mixes)


class CheckedSoftmax(NumpySoftmax):
    backend: CheckedBackend

    def _slowly(self, read: Read, shares: SoftmaxShares) -> Array:
        return slow.softmax(naive.read(self.backend.x[self.op.source], read), shares)

    def forward(self, read: Read, shares: SoftmaxShares) -> None:
        super().forward(read, shares)
        found = self.backend.raw[self.op.target]
        self.backend.check("softmax", found, self._slowly(read, shares))

    def _slow_slopes(self, read: Read, shares: SoftmaxShares, chain: Chain) -> Array:
        p = self.backend.slowly_passed(self.op.target, chain)
        return slow.softmax_slopes(self._slowly(read, shares), p, shares.bits)

    def peak(self, read: Read, shares: SoftmaxShares, chain: Chain) -> Ints:
        found = super().peak(read, shares, chain)
        self.backend.check(
            "softmax peak", found, naive.peaks(self._slow_slopes(read, shares, chain))
        )
        return found

    def backward(
        self, read: Read, shares: SoftmaxShares, chain: Chain, shift: Ints, mix: Mix | None
    ) -> None:
        op, backend, old = self.op, self.backend, self.backend.g.get(self.op.source)
        slopes = self._slow_slopes(read, shares, chain)
        super().backward(read, shares, chain, shift, mix)
        given = naive.narrowed(slopes, shift, naive.half_even)
        backend.check_given("softmax", op.source, given, old, mix)


class CheckedSpread(NumpySpread):
    backend: CheckedBackend

    def forward(self, values: Values) -> None:
        super().forward(values)
        raw = self.backend.raw[self.op.target]
        self.backend.check("spread", raw.reshape(len(raw), -1), [values.tolist()] * len(raw))

    def sums(self, chain: Chain) -> Sums:
        found = super().sums(chain)
        p = self.backend.slowly_passed(self.op.target, chain)
        expected = [sum(column) for column in p.reshape(len(p), -1).T.tolist()]
        self.backend.check("sums of spread", found, expected)
        return found


class CheckedEmbedding(NumpyEmbedding):
    backend: CheckedBackend

    def forward(self, shift: int, values: Values) -> None:
        super().forward(shift, values)
        x, raw = self.backend.x[self.op.source], self.backend.raw[self.op.target]
        expected = np.zeros(raw.shape, np.int64)
        for n, c, _, t in np.ndindex(*raw.shape):
            expected[n, c, 0, t] = values[(int(x[n, t, 0, 0]) // 2**shift) * raw.shape[1] + c]
        self.backend.check("embedding", raw, expected)

    def sums(self, shift: int, chain: Chain, count: int) -> Sums:
        found = super().sums(shift, chain, count)
        x, p = self.backend.x[self.op.source], self.backend.slowly_passed(self.op.target, chain)
        expected = [0] * count
        for n, c, _, t in np.ndindex(*p.shape):
            token = int(x[n, t, 0, 0]) // 2**shift
            if token != self.op.padding:
                expected[token * p.shape[1] + c] += int(p[n, c, 0, t])
        self.backend.check("sums of embedding", found, expected)
        return found


CHECKED: dict[type[PlanOp], type[Any]] = {
    AttentionOp: CheckedAttention,
    Product: CheckedProduct,
    SoftmaxOp: CheckedSoftmax,
    Spread: CheckedSpread,
    Embedding: CheckedEmbedding,
}

SEEN: dict[type[PlanOp], set[str]] = {
    AttentionOp: {"attention", "row peaks", "column peaks", "gradient by attention"},
    Product: {"product", "gradient by product"},
    SoftmaxOp: {"softmax", "softmax peak", "gradient by softmax"},
    Spread: {"spread"},
    Embedding: {"embedding", "sums of embedding"},
}
"""What a step of an example must have compared."""
