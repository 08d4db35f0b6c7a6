"""A tensor with its axes in another order, or of another shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedkit.engine.integer.constants import WIDE, Chain, Mix, Read
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.native_backend import NativeOp
from fedkit.engine.integer.numpy_backend import NumpyOp
from fedkit.engine.ops import put
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.ops.put import Put
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import OneSourceOp, Plan, Shape
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace
from fedkit.graph import ir
from fedkit.graph.ops.transpose import axes_of


@dataclass(frozen=True)
class Reorder(OneSourceOp):
    """Write read(source) with its axes in an order, and then in the shape of target.

    Of order (2, 0, 1) the first axis is what were columns, then come channels, then rows. The shape
    may be any of as many elements: they keep the order that they have then.
    """

    source: int
    target: int
    order: tuple[int, int, int] = (0, 1, 2)
    kind: Literal["reorder"] = "reorder"

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        if sorted(self.order) != [0, 1, 2]:
            yield f"has the order {self.order}; it must be 0, 1 and 2 in some order"
        source, target = (plan.tensors[each].shape for each in (self.source, self.target))
        if put.count_of(plan, self.source) != put.count_of(plan, self.target):
            yield f"turns {source} into {target}; there must be as many elements"


def put_of(op: Reorder, plan: Plan) -> Put:
    """Return where the elements lie."""
    shape, strides, step = plan.tensors[op.source].shape, [0, 0, 0], 1
    for axis in reversed(op.order):
        strides[axis] = step
        step *= shape[axis]
    return Put(op.source, op.target, shape, (strides[0], strides[1], strides[2]))


class FloatReorder(FloatOp[Reorder]):
    """Reads and writes each element once."""

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        return put.float_forward(work, put_of(self.op, work.plan))

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        for contribution in given:
            yield put.float_backward(work, put_of(self.op, work.plan), contribution.accumulate)


class IntegerReorder(IntegerOp[Reorder]):
    """One unit for all that is read, and one for all gradients: channels mix."""

    compute: NumpyReorder | NativeReorder

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        unit = units.worth[op.source].bound / WIDE
        self.compute.forward(units.read(op.source, unit, WIDE))
        units.raw_unit[op.target] = np.full(units.channels(op.target), unit)

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        op = self.op
        unit = max(float(units.passed_bound(op.target).max()), LEAST) / WIDE
        chain = units.chain_in(op.target, np.full(units.channels(op.target), unit), WIDE)
        slope = Slope.whole(np.full(units.channels(op.source), unit))
        for contribution in given:
            self.compute.backward(chain, units.give(contribution, slope))


class NumpyReorder(NumpyOp[Reorder]):
    """An assignment to places."""

    def forward(self, read: Read) -> None:
        """Write raw = what is read, reordered."""
        put.numpy_forward(self.backend, put_of(self.op, self.backend.plan), read)

    def backward(self, chain: Chain, mix: Mix | None) -> None:
        """Give the passed gradient, in the order of the source."""
        put.numpy_backward(self.backend, put_of(self.op, self.backend.plan), chain, mix)


class NativeReorder(NativeOp[Reorder]):
    """The same by a kernel."""

    def forward(self, read: Read) -> None:
        """See `NumpyReorder.forward`."""
        put.native_forward(self.backend, put_of(self.op, self.backend.plan), read)

    def backward(self, chain: Chain, mix: Mix | None) -> None:
        """See `NumpyReorder.backward`."""
        put.native_backward(self.backend, put_of(self.op, self.backend.plan), chain, mix)


def _planned(maker: Any, op: ir.Op) -> int:
    rows, columns, channels = axes_of(op)
    of_plan = {1: 1, 2: 2, 3: 0}
    source, target = maker.value(op), maker.target(op)
    order = of_plan[channels], of_plan[rows], of_plan[columns]
    maker.ops.append(Reorder(source, target, order))
    return int(target)


_MAP: Shape = (3, 2, 5)

FAMILY = Family(
    Reorder,
    (
        Example(Reorder(1, 2, (2, 0, 1)), (_MAP, _MAP, (5, 3, 2))),
        Example(Reorder(1, 2, (0, 2, 1)), (_MAP, _MAP, (3, 5, 2))),
        Example(Reorder(1, 2, (1, 0, 2)), (_MAP, _MAP, (6, 5, 1))),
    ),
    FloatReorder,
    IntegerFamily(IntegerReorder, NumpyReorder, NativeReorder),
    {"transpose": _planned},
)
