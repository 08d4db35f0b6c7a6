"""Rows of a table that the whole numbers of the input choose, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import byref, c_void_p
from typing import Any

from fedkit.engine.kernels.structs import pointer
from fedkit.engine.ops.embedding_integer import INTEGER
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.embedding import Embedding
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace
from fedkit.graph import ir
from fedkit.graph.ops.embedding import padding_of


class FloatEmbedding(FloatOp[Embedding]):
    """Adds the gradient of a row wherever it was chosen, in the order of the examples."""

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        parameters = work.network.parameters
        table = parameters.part(self.op.table, parameters.values)
        return work.shared(
            *(work.kernels.embedding_forward, work.tiles),
            *(byref(work.tensors[self.op.source]), byref(work.tensors[self.op.target])),
            c_void_p(pointer(table)),
        )

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        if work.trains(self.op.table):
            gradient = work.network.parameters.part(self.op.table, work.gradient)
            yield work.shared(
                *(work.kernels.embedding_gradients, work.plan.tensors[self.op.target].shape[0]),
                *(byref(work.tensors[self.op.source]), byref(work.tensors[self.op.target])),
                *(c_void_p(pointer(gradient)), self.op.padding),
            )


def _planned(maker: Any, op: ir.Op) -> int:
    target, padding = maker.target(op), padding_of(op)
    maker.ops.append(Embedding(maker.value(op), target, maker.weight(op), padding))
    return int(target)


FAMILY = Family(
    Embedding,
    (
        Example(Embedding(0, 1, "table", -1), ((7, 1, 1), (4, 1, 7)), {"table": (5, 4)}),
        Example(Embedding(0, 1, "table", 2), ((6, 1, 1), (3, 1, 6)), {"table": (9, 3)}),
    ),
    FloatEmbedding,
    INTEGER,
    from_graph={"embedding": _planned},
)
