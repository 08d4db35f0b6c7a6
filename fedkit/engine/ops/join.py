"""Tensors one behind the other, along their rows or columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from fedkit.engine.plan.structure import Plan, PlanOp, Shape
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace
from fedkit.graph import ir
from fedkit.graph.ops.concat import along_of

Axis = Literal["rows", "columns"]
_AXES: Mapping[str, int] = {"rows": 1, "columns": 2}


@dataclass(frozen=True)
class Join(PlanOp):
    """Write what is read of all parts to target, one behind the other along an axis."""

    parts: tuple[int, ...]
    target: int
    axis: Axis
    kind: Literal["join"] = "join"

    @property
    def sources(self) -> tuple[int, ...]:
        """See `PlanOp.sources`."""
        return self.parts

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        if self.axis not in _AXES:
            yield f"joins along {self.axis!r}; it must be one of {', '.join(_AXES)}"
            return
        shapes = [plan.tensors[part].shape for part in self.parts]
        target, axis = plan.tensors[self.target].shape, _AXES[self.axis]
        others = {(*shape[:axis], *shape[axis + 1 :]) for shape in (*shapes, target)}
        size = sum(shape[axis] for shape in shapes)
        if len(others) > 1 or size != target[axis]:
            yield f"joins the {self.axis} of {shapes} to {target}; all else must be equal"


def puts_of(op: Join, plan: Plan) -> list[Put]:
    """Return where each part lies."""
    strides, found, before = put.strides_of(plan, op.target), list[Put](), 0
    for part in op.parts:
        shape = plan.tensors[part].shape
        found.append(Put(part, op.target, shape, strides, before * strides[_AXES[op.axis]]))
        before += shape[_AXES[op.axis]]
    return found


def _given(
    puts: Sequence[Put], given: Sequence[Contribution]
) -> Iterator[tuple[Put, Contribution]]:
    """Yield each contribution with its part; one that stands there twice gives two."""
    needing = {contribution.tensor for contribution in given}
    yield from zip((each for each in puts if each.source in needing), given, strict=True)


class FloatJoin(FloatOp[Join]):
    """Reads and writes each element once."""

    def forward(self, work: Workspace) -> Sequence[Call]:
        """See `FloatOp.forward`."""
        return [put.float_forward(work, each) for each in puts_of(self.op, work.plan)]

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        for each, contribution in _given(puts_of(self.op, work.plan), given):
            yield put.float_backward(work, each, contribution.accumulate)


class IntegerJoin(IntegerOp[Join]):
    """One unit for all parts, as they share channels."""

    compute: NumpyJoin | NativeJoin

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        unit = max(units.worth[part].bound for part in op.parts) / WIDE
        for each in puts_of(op, units.plan):
            self.compute.forward(each, units.read(each.source, unit, WIDE))
        units.raw_unit[op.target] = np.full(units.channels(op.target), unit)

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        unit = np.maximum(units.passed_bound(self.op.target), LEAST) / WIDE
        chain = units.chain_in(self.op.target, unit, WIDE)
        for each, contribution in _given(puts_of(self.op, units.plan), given):
            self.compute.backward(each, chain, units.give(contribution, Slope.whole(unit)))


class NumpyJoin(NumpyOp[Join]):
    """An assignment to places."""

    def forward(self, part: Put, read: Read) -> None:
        """Write read(x) of a part where it lies in raw."""
        put.numpy_forward(self.backend, part, read)

    def backward(self, part: Put, chain: Chain, mix: Mix | None) -> None:
        """Give the passed gradient there to the part."""
        put.numpy_backward(self.backend, part, chain, mix)


class NativeJoin(NativeOp[Join]):
    """The same by a kernel."""

    def forward(self, part: Put, read: Read) -> None:
        """See `NumpyJoin.forward`."""
        put.native_forward(self.backend, part, read)

    def backward(self, part: Put, chain: Chain, mix: Mix | None) -> None:
        """See `NumpyJoin.backward`."""
        put.native_backward(self.backend, part, chain, mix)


def _planned(maker: Any, op: ir.Op) -> int:
    parts = tuple(maker.value(op, number) for number in range(len(op.inputs)))
    target = maker.target(op)
    maker.ops.append(Join(parts, target, along_of(op)))
    return int(target)


_IMAGE: Shape = (3, 6, 5)

FAMILY = Family(
    Join,
    (
        Example(Join((1, 2), 3, "rows"), (_IMAGE, (2, 3, 4), (2, 1, 4), (2, 4, 4))),
        Example(Join((2, 1, 2), 3, "columns"), (_IMAGE, (3, 2, 2), (3, 2, 3), (3, 2, 8))),
        Example(Join((1,), 2, "columns"), (_IMAGE, (2, 3, 4), (2, 3, 4))),
    ),
    FloatJoin,
    IntegerFamily(IntegerJoin, NumpyJoin, NativeJoin),
    {"concat_along": _planned},
)
