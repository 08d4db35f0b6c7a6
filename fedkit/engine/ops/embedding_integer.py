"""Rows of a table that the whole numbers of the input choose, in integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import byref

import numpy as np

from fedkit.engine.integer.constants import CODE, WIDE, Chain
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Units
from fedkit.engine.integer.native_backend import NativeOp, address, chain_struct
from fedkit.engine.integer.numpy_backend import NumpyOp
from fedkit.engine.ops.spread_integer import Sums, Values, narrowed
from fedkit.engine.plan.embedding import Embedding
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import Plan


class IntegerEmbedding(IntegerOp[Embedding]):
    """Narrows the table anew for each batch; a token is a code of the input, shifted."""

    compute: NumpyEmbedding | NativeEmbedding

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        values, unit = narrowed(units, op.table)
        # Inputs are in steps of a power of two, at most 1.
        self._shift = -round(math.log2(float(units.worth[op.source].factor[0])))
        self.compute.forward(self._shift, values)
        units.raw_unit[op.target] = np.full(units.channels(op.target), unit)

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        op = self.op
        if not units.trains(op.table):
            return
        bound = units.passed_bound(op.target)
        unit = max(float(bound.max()), LEAST) / WIDE
        chain = units.chain_in(op.target, np.full(len(bound), unit), WIDE)
        gradient = units.network.part(op.table, units.gradient)
        gradient[:] = self.compute.sums(self._shift, chain, len(gradient))
        units.gradient_units[op.table] = np.array([unit])


def refused(op: Embedding, plan: Plan) -> str | None:
    """Say why the integer engine cannot run it: its inputs have 8 bits."""
    rows = plan.weights[op.table][0]
    if rows <= CODE + 1:
        return None
    return f"an embedding {op.table!r} of {rows} rows, where 8 bits tell {CODE + 1} tokens"


class NumpyEmbedding(NumpyOp[Embedding]):
    """Takes rows, and adds to them."""

    def forward(self, shift: int, values: Values) -> None:
        """Write raw: the rows of the tokens x >> shift, of values [rows * channels]."""
        channels = self.backend.plan.tensors[self.op.target].shape[0]
        rows = values.astype(np.int64).reshape(-1, channels)[self._tokens(shift)]
        self.backend.raw[self.op.target] = rows.transpose(0, 2, 1)[:, :, None]

    def sums(self, shift: int, chain: Chain, count: int) -> Sums:
        """Return the sum of what passes for each of `count` values of the table, int64."""
        passed = self.backend.passed(self.op.target, chain)[:, :, 0].transpose(0, 2, 1)
        found = np.zeros((count // passed.shape[2], passed.shape[2]), np.int64)
        np.add.at(found, self._tokens(shift), passed)
        if self.op.padding >= 0:
            found[self.op.padding] = 0
        return found.ravel()

    def _tokens(self, shift: int) -> Sums:
        """Return [n, tokens]."""
        return np.asarray(self.backend.x[self.op.source][:, :, 0, 0] >> shift)


class NativeEmbedding(NativeOp[Embedding]):
    """The same by kernels."""

    def forward(self, shift: int, values: Values) -> None:
        """See `NumpyEmbedding.forward`."""
        op, backend = self.op, self.backend
        backend.kernels.int_embedding_forward(
            *(backend.tensor(op.source), backend.tensor(op.target), address(values)),
            *(shift, 0, backend.tiles),
        )

    def sums(self, shift: int, chain: Chain, count: int) -> Sums:
        """See `NumpyEmbedding.sums`."""
        op, backend, found = self.op, self.backend, np.zeros(count, np.int64)
        backend.kernels.int_embedding_sums(
            *(backend.tensor(op.source), backend.tensor(op.target), byref(chain_struct(chain))),
            *(shift, op.padding, 0, backend.tiles, address(found)),
        )
        return found


INTEGER = IntegerFamily(IntegerEmbedding, NumpyEmbedding, NativeEmbedding, refused)
