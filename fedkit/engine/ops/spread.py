"""Values that all examples have, of a parameter or of numbers: what tells places apart, a token."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Sequence
from ctypes import byref, c_void_p
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedkit.engine.kernels.structs import pointer
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import Plan, PlanOp, strict
from fedkit.engine.sparse.float_op import Call, FloatOp, Floats, Workspace
from fedkit.graph import ir


@strict
@dataclass(frozen=True)
class Spread(PlanOp):
    """target = values, the same for each example.

    Attributes:
        values: Of kind "learned" the name of a parameter; of "numbers" float32 in little endian, as
            base64. Both have as many values as the target, in its order.
        target: What is written.
    """

    values: str
    target: int
    kind: Literal["learned", "numbers"]

    @property
    def sources(self) -> tuple[int, ...]:
        """See `PlanOp.sources`."""
        return ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """See `PlanOp.parameters`."""
        return (self.values,) if self.kind == "learned" else ()

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        wanted = math.prod(plan.tensors[self.target].shape)
        if self.kind == "learned":
            found = math.prod(plan.weights.get(self.values, (0,)))
        else:
            numbers = numbers_of(self)
            found = 0 if numbers is None else numbers.size
            if numbers is not None and not np.isfinite(numbers).all():
                yield "has numbers that are not finite"
        if found != wanted:
            yield f"has {found} values for {wanted}; there must be one for each"


def numbers_of(op: Spread) -> Floats | None:
    """Return the numbers of an op, None where its text is none."""
    try:
        return np.frombuffer(base64.b64decode(op.values, validate=True), "<f4").astype(np.float32)
    except (binascii.Error, ValueError):
        return None


def text_of(numbers: Floats) -> str:
    """Return what `numbers_of` reads."""
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode()


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
    integer=None,
    from_graph={"spread": _planned},
)
