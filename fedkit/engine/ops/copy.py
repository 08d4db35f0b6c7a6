"""Copies: concatenations and flattening."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedkit.engine.integer.constants import WIDE, Chain, Mix, Read
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.numpy_backend import NumpyBackend, NumpyOp
from fedkit.engine.integer.shared_units import SharedUnits
from fedkit.engine.integer.stepped_op import Step, SteppedOp
from fedkit.engine.kernels.int_native import StepKind
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import OneSourceOp, Plan
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace


@dataclass(frozen=True)
class Copy(OneSourceOp):
    """Write read(source) to the channels of target from `channel` on.

    A concatenation is several copies into one target. A flatten is a copy of (c, h, w) to
    (c * h * w, 1, 1) in C order, with `channel` 0.
    """

    source: int
    target: int
    channel: int = 0
    kind: Literal["copy"] = "copy"

    def channels(self, plan: Plan) -> range:
        """See `PlanOp.channels`."""
        if self._flattens(plan):
            return super().channels(plan)
        return range(self.channel, self.channel + plan.tensors[self.source].shape[0])

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        source, target = plan.tensors[self.source].shape, plan.tensors[self.target].shape
        fits = 0 <= self.channel <= target[0] - source[0] and source[1:] == target[1:]
        if not fits and not self._flattens(plan):
            yield (
                f"writes {source} to {target} from channel {self.channel} on; the planes must be "
                f"equal and the channels fit, or the target be {(math.prod(source), 1, 1)}"
            )

    def _flattens(self, plan: Plan) -> bool:
        source, target = plan.tensors[self.source].shape, plan.tensors[self.target].shape
        return self.channel == 0 and target == (math.prod(source), 1, 1)


class FloatCopy(FloatOp[Copy]):
    """Reads and writes each element once."""

    by_tiles = True

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        source, target = (byref(work.tensors[t]) for t in (self.op.source, self.op.target))
        arguments = (source, target, self.op.channel)
        return work.shared(work.kernels.copy_forward, work.tiles, *arguments)

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        for contribution in given:
            yield pass_gradient(work, contribution, self.op.target, self.op.channel)


def pass_gradient(work: Workspace, given: Contribution, target: int, channel: int) -> Call:
    """Return a call that gives the gradient of target's channels from `channel` on to a source."""
    tensors = (byref(work.tensors[tensor]) for tensor in (given.tensor, target))
    arguments = (*tensors, channel, int(given.accumulate))
    return work.shared(work.kernels.copy_backward, work.tiles, *arguments)


class IntegerCopy(IntegerOp[Copy]):
    """One unit for all that one copy writes."""

    compute: NumpyCopy

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        unit = units.worth[op.source].bound / WIDE
        self.compute.forward(units.read(op.source, unit, WIDE))
        found = units.raw_unit.setdefault(op.target, np.zeros(units.channels(op.target)))
        written = op.channels(units.plan)
        found[written.start : written.stop] = unit

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        for contribution in given:
            how = units_of_channels(units, contribution, self.op.target, self.op.channel)
            self.compute.backward(contribution.tensor, *how)


def units_of_channels(
    units: Units, given: Contribution, target: int, channel: int
) -> tuple[Chain, Mix | None]:
    """Return how the gradient of target's channels from `channel` on goes to a source."""
    shapes, channels = units.plan.tensors, units.channels(given.tensor)
    elements = math.prod(shapes[given.tensor].shape)
    count = elements // math.prod(shapes[target].shape[1:])
    # One unit per channel of the source, which a flattened tensor has many channels of.
    taken = slice(channel, channel + count)
    bound = units.passed_bound(target)[taken].reshape(channels, -1).max(1)
    unit = np.maximum(bound, LEAST) / WIDE
    whole = np.ones(units.channels(target))
    whole[taken] = np.repeat(unit, count // channels)
    chain = units.chain_in(target, whole, WIDE)
    return chain, units.give(given, Slope.whole(unit))


class NumpyCopy(NumpyOp[Copy]):
    """A slice of the channels."""

    def forward(self, read: Read) -> None:
        """Write read(x) to some channels of raw."""
        op, backend = self.op, self.backend
        shape = (backend.examples, *backend.plan.tensors[op.target].shape)
        raw = backend.raw.setdefault(op.target, np.zeros(shape, np.int64))
        values = backend.read(op.source, read).reshape(backend.examples, -1, *shape[2:])
        raw[:, op.channel : op.channel + values.shape[1]] = values

    def backward(self, source: int, chain: Chain, mix: Mix | None) -> None:
        """Give the passed gradient of its channels of the target to the source."""
        numpy_channels(self.backend, source, self.op.target, self.op.channel, chain, mix)


def numpy_channels(
    backend: NumpyBackend, source: int, target: int, channel: int, chain: Chain, mix: Mix | None
) -> None:
    """Give the passed gradient of target's channels from `channel` on to a source."""
    shape, passed = backend.plan.tensors[source].shape, backend.passed(target, chain)
    count = int(np.prod(shape)) // int(np.prod(passed.shape[2:]))
    taken = passed[:, channel : channel + count]
    backend.put(source, taken.reshape(backend.examples, *shape), mix)


class NativeCopy(SteppedOp[Copy]):
    """The same by steps of the kernels."""

    def forward_step(self, shared: SharedUnits) -> Step:
        """See `SteppedOp.forward_step`."""
        op = self.op
        return StepKind.COPY_FORWARD, shared.copy_step(op.source, op.target, op.channel)

    def backward_steps(self, shared: SharedUnits, given: Sequence[Contribution]) -> Sequence[Step]:
        """See `SteppedOp.backward_steps`."""
        return copy_steps(shared, given, self.op.target, self.op.channel)


def copy_steps(
    shared: SharedUnits, given: Sequence[Contribution], target: int, channel: int
) -> Sequence[Step]:
    """Return steps that give the gradient of target's channels from `channel` on to sources."""
    return [
        (StepKind.COPY_BACKWARD, shared.copy_step(each.tensor, target, channel, each.accumulate))
        for each in given
    ]


FAMILY = Family(
    Copy,
    (
        Example(Copy(1, 2), ((2, 3, 4), (2, 3, 4), (24, 1, 1))),
        Example(Copy(1, 2), ((2, 3, 4), (2, 3, 4), (2, 3, 4))),
    ),
    FloatCopy,
    IntegerFamily(IntegerCopy, NumpyCopy, NativeCopy),
)
