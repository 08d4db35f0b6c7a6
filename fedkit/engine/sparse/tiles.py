"""What ops that work on whole tiles tell their kernels, and the room that these need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fedkit.engine.plan.execution import Contribution, sides
from fedkit.engine.plan.structure import Plan, PlanOp

GIVES_NOTHING, GIVES_FIRST, GIVES_MORE = range(3)
"""`enum gives` of matrices.h."""


def read_room(plan: Plan, tensors: Iterable[int]) -> int:
    """Return the values of an example of those that a read changes: `tile_values`."""
    read = (plan.tensors[each] for each in tensors)
    return sum(math.prod(t.shape) for t in read if t.norm is not None or t.activation != "none")


def gradient_room(plan: Plan, tensor: int) -> int:
    """Return the values of an example whose gradient passes through a norm: `tile_gradient`."""
    found = plan.tensors[tensor]
    return 0 if found.norm is None else math.prod(found.shape)


def gives(op: PlanOp, given: Sequence[Contribution]) -> list[int]:
    """Return what becomes of the gradient of each source."""
    found = [GIVES_NOTHING] * len(op.sources)
    for side, contribution in sides(op, given):
        found[side] = GIVES_MORE if contribution.accumulate else GIVES_FIRST
    return found
