"""The sum of two tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedkit.engine.integer.constants import WIDE, Chain, Mix, Read
from fedkit.engine.integer.integer_op import IntegerFamily, IntegerOp, Units
from fedkit.engine.integer.numpy_backend import NumpyOp
from fedkit.engine.integer.shared_units import SharedUnits
from fedkit.engine.integer.stepped_op import Step, SteppedOp
from fedkit.engine.kernels.int_native import StepKind
from fedkit.engine.kernels.network import Network
from fedkit.engine.ops.copy import (
    copy_steps,
    numpy_channels,
    pass_gradient,
    units_of_channels,
)
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import Plan, PlanOp
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace


@dataclass(frozen=True)
class Add(PlanOp):
    """target = read(left) + read(right), all of one shape."""

    left: int
    right: int
    target: int
    kind: Literal["add"] = "add"

    shares_gradient: ClassVar[bool] = True

    @property
    def sources(self) -> tuple[int, ...]:
        """See `PlanOp.sources`."""
        return self.left, self.right

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        left, right, target = (
            plan.tensors[tensor].shape for tensor in (self.left, self.right, self.target)
        )
        if not left == right == target:
            yield f"adds {left} and {right} to {target}; the shapes must be equal"


class FloatAdd(FloatOp[Add]):
    """Two additions per element, and none where gradients share memory."""

    by_tiles = takes_ranges = True

    @staticmethod
    def overwrites(network: Network, number: int) -> bool:
        """See `FloatOp.overwrites`."""
        return True

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        tensors = (byref(work.tensors[t]) for t in (*self.op.sources, self.op.target))
        return work.shared(work.kernels.add_forward, work.tiles, *tensors)

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        for contribution in given:
            if not contribution.shared:
                yield pass_gradient(work, contribution, self.op.target, 0)


class IntegerAdd(IntegerOp[Add]):
    """Reads both sides in one unit, with as much room for each as it is large."""

    compute: NumpyAdd

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        bounds = [units.worth[side].bound for side in op.sources]
        unit = sum(bounds) / WIDE
        high = int(bounds[0] / sum(bounds) * WIDE)
        left, right = units.read(op.left, unit, high), units.read(op.right, unit, WIDE - high)
        self.compute.forward(left, right)
        units.raw_unit[op.target] = np.full(units.channels(op.target), unit)

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        for contribution in given:
            how = units_of_channels(units, contribution, self.op.target, 0)
            self.compute.backward(contribution.tensor, *how)


class NumpyAdd(NumpyOp[Add]):
    """A sum of what is read."""

    def forward(self, left: Read, right: Read) -> None:
        """Write raw = left(x) + right(x)."""
        op, backend = self.op, self.backend
        backend.raw[op.target] = backend.read(op.left, left) + backend.read(op.right, right)

    def backward(self, source: int, chain: Chain, mix: Mix | None) -> None:
        """Give the passed gradient of the target to a source."""
        numpy_channels(self.backend, source, self.op.target, 0, chain, mix)


class NativeAdd(SteppedOp[Add]):
    """The same by steps of the kernels."""

    def forward_step(self, shared: SharedUnits) -> Step:
        """See `SteppedOp.forward_step`."""
        struct = shared.copy_step(self.op.left, self.op.target)
        struct.other = shared.at(self.op.right)
        return StepKind.ADD_FORWARD, struct

    def backward_steps(self, shared: SharedUnits, given: Sequence[Contribution]) -> Sequence[Step]:
        """See `SteppedOp.backward_steps`."""
        return copy_steps(shared, given, self.op.target, 0)


FAMILY = Family(
    Add,
    (Example(Add(1, 2, 3), ((2, 3, 4),) * 4),),
    FloatAdd,
    IntegerFamily(IntegerAdd, NumpyAdd, NativeAdd),
)
