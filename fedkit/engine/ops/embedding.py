"""Rows of a table that the whole numbers of the input choose, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import byref, c_void_p
from dataclasses import dataclass
from typing import Any, Literal

from fedkit.engine.kernels.structs import pointer
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import OneSourceOp, Plan, strict
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace
from fedkit.graph import ir
from fedkit.graph.ops.embedding import padding_of


@strict
@dataclass(frozen=True)
class Embedding(OneSourceOp):
    """target[c, 0, t] = table[input[t], c]: tokens become vectors.

    Attributes:
        source: The input, tensor 0, of shape (tokens, 1, 1); its values are whole.
        target: Of shape (channels, 1, tokens).
        table: Name of a parameter of shape (numbers that there are, channels).
        padding: The row that has no gradient, -1: all have.
    """

    source: int
    target: int
    table: str
    padding: int
    kind: Literal["embedding"] = "embedding"

    @property
    def parameters(self) -> tuple[str, ...]:
        """See `PlanOp.parameters`."""
        return (self.table,)

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    @property
    def takes_tokens(self) -> bool:
        """See `PlanOp.takes_tokens`."""
        return True

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        source, target = (plan.tensors[each].shape for each in (self.source, self.target))
        if self.source != 0:
            yield f"reads tensor {self.source}; it must read the input, tensor 0"
        if source[1:] != (1, 1) or target[1:] != (1, source[0]):
            yield f"turns {source} into {target}; (tokens, 1, 1) must become (channels, 1, tokens)"
        found = plan.weights.get(self.table, ())
        if len(found) != 2 or found[1] != target[0]:
            yield f"has table {self.table!r} of shape {found}; it must be (numbers, {target[0]})"
        elif not -1 <= self.padding < found[0]:
            yield f"has row {self.padding} as padding; there are rows 0 to {found[0] - 1}, or -1"


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
    integer=None,
    from_graph={"embedding": _planned},
)
