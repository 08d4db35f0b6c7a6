"""Values that all examples have, of a parameter or of numbers: what tells places apart, a token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import byref, c_void_p
from typing import Any

import numpy as np

from fedkit.engine.kernels.structs import pointer
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.ops.spread_integer import INTEGER
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.spread import Spread, numbers_of, text_of
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace
from fedkit.graph import ir


class FloatSpread(FloatOp[Spread]):
    """Writes each value to all lanes, in every pass: memory is for what follows."""

    def __init__(self, op: Spread, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        if op.kind == "learned":
            parameters = work.network.parameters
            self._values = parameters.part(op.values, parameters.values)
        else:
            numbers = numbers_of(op)
            assert numbers is not None  # the verifier's rule
            self._values, self.room_bytes = numbers, numbers.nbytes

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        arguments = byref(work.tensors[self.op.target]), c_void_p(pointer(self._values))
        return work.shared(work.kernels.spread_forward, work.tiles, *arguments)

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        if self.op.kind == "learned" and work.trains(self.op.values):
            gradient = work.network.parameters.part(self.op.values, work.gradient)
            arguments = byref(work.tensors[self.op.target]), c_void_p(pointer(gradient))
            channels = work.plan.tensors[self.op.target].shape[0]
            yield work.shared(work.kernels.spread_gradients, channels, *arguments)


def _planned(maker: Any, op: ir.Op) -> int:
    target, held = maker.target(op), maker.graph.tensors[op.inputs[0]]
    if held.parameter:
        maker.ops.append(Spread(held.parameter, target, "learned"))
    else:
        in_order = ir.from_graph_layout(maker.graph.constant(held.name))
        maker.ops.append(Spread(text_of(in_order), target, "numbers"))
    return int(target)


_SHAPES = ((3, 4, 5), (2, 4, 3))

FAMILY = Family(
    Spread,
    (
        Example(Spread("places", 1, "learned"), _SHAPES, {"places": (1, 8, 3)}),
        Example(Spread(text_of(np.arange(24, dtype=np.float32) / 8), 1, "numbers"), _SHAPES),
    ),
    FloatSpread,
    INTEGER,
    from_graph={"spread": _planned},
)
