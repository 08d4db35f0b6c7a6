"""Softmax over the channels of each place, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import byref
from typing import Any

from fedkit.engine.ops.family import Example, Family
from fedkit.engine.ops.softmax_integer import INTEGER
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.softmax import SoftmaxOp
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace
from fedkit.graph import ir


class FloatSoftmax(FloatOp[SoftmaxOp]):
    """Computes the result anew in the backward pass, instead of keeping it."""

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        ends = (byref(work.tensors[each]) for each in (self.op.source, self.op.target))
        return work.shared(work.kernels.softmax_forward, work.tiles, *ends)

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        for contribution in given:
            ends = (byref(work.tensors[each]) for each in (self.op.source, self.op.target))
            arguments = (*ends, int(contribution.accumulate))
            yield work.shared(work.kernels.softmax_backward, work.tiles, *arguments)


def _planned(maker: Any, op: ir.Op) -> int:
    source, target = maker.value(op), maker.target(op)
    maker.ops.append(SoftmaxOp(source, target))
    return int(target)


FAMILY = Family(
    SoftmaxOp,
    (
        Example(SoftmaxOp(1, 2), ((5, 2, 3),) * 3),
        Example(SoftmaxOp(1, 2), ((9, 1, 1),) * 3),
        Example(SoftmaxOp(1, 2), ((4, 3, 1),) * 3),
    ),
    FloatSoftmax,
    INTEGER,
    from_graph={"softmax": _planned},
)
