"""A program as a table of steps, which the kernels take in one call.

An op whose family has no such steps is called between two walks, and Python chooses its constants.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from ctypes import byref
from typing import Any

from fedkit.engine.integer.integer_op import IntegerOp, Units
from fedkit.engine.integer.shared_units import SharedUnits
from fedkit.engine.integer.stepped_op import Step, SteppedOp
from fedkit.engine.kernels import int_native
from fedkit.engine.kernels.int_native import StepKind
from fedkit.engine.kernels.native import Kernels
from fedkit.engine.plan.execution import Backward, Finish, Forward, Schedule
from fedkit.engine.plan.pieces import Piece, joined

Run = Callable[[Units], None]


class Walker:
    """Runs a schedule whose ops are made.

    Args:
        kernels: The compiled kernels.
        shared: What the steps read and write.
        schedule: What is to run.
        ops: One for each of the plan.
        requantised: Tensors of which codes are made.
    """

    def __init__(
        self,
        kernels: Kernels,
        shared: SharedUnits,
        schedule: Schedule,
        ops: Sequence[IntegerOp[Any]],
        requantised: Container[int],
    ) -> None:
        self._kernels, self._shared, self._ops = kernels, shared, ops
        self._requantised = requantised
        self._table: list[Step] = []
        self._begun_by: dict[int, IntegerOp[Any]] = {}
        forward, backward = list[Piece[Run]](), list[Piece[Run]]()
        for step in schedule.steps:
            if isinstance(step, Forward):
                forward += self._forward(step)
            elif isinstance(step, Finish):
                backward.append(self._added(*self._finish(step.tensor)))
            elif isinstance(step, Backward):
                backward += self._backward(step)
        self._forward_pieces, self._backward_pieces = joined(forward), joined(backward)
        self._pieces_of_ops = joined(backward, through=False)
        self._steps = (int_native.IntStep * len(self._table))(
            *(int_native.IntStep(ctypes.addressof(struct), kind) for kind, struct in self._table)
        )

    # The table

    def _added(
        self, *steps: Step, op: int | None = None, by: IntegerOp[Any] | None = None
    ) -> Piece[Run]:
        first = len(self._table)
        if by is not None:
            self._begun_by[first] = by
        self._table += steps
        return Piece(first, len(self._table), op=op)

    def _forward(self, step: Forward) -> Iterator[Piece[Run]]:
        op, worths = self._ops[step.op], self._shared.worths
        if isinstance(op.compute, SteppedOp):
            yield self._added(op.compute.forward_step(self._shared), by=op)
        else:
            yield Piece(0, 0, op.forward)
        if step.completes and op.op.target in self._requantised:
            yield self._added((StepKind.REQUANTISE, worths[op.op.target]))

    def _finish(self, *tensors: int) -> Iterator[Step]:
        return ((StepKind.FINISH, self._shared.worths[tensor]) for tensor in tensors)

    def _backward(self, step: Backward) -> Iterator[Piece[Run]]:
        op, given = self._ops[step.op], [c for c in step.contributions if not c.shared]
        yield self._added(*self._shares(step), op=step.op)
        if isinstance(op.compute, SteppedOp):
            yield self._added(*op.compute.backward_steps(self._shared, given), by=op)
        else:
            yield Piece(0, 0, functools.partial(op.backward, given=given))
        yield self._added(*self._finish(*(c.tensor for c in given if c.finish)))

    def _shares(self, step: Backward) -> Iterator[Step]:
        target = self._ops[step.op].op.target
        for contribution in step.contributions:
            if contribution.shared:
                yield StepKind.SHARE, self._shared.copy_step(contribution.tensor, target)

    # Running

    def forward(self, units: Units) -> None:
        """Run the forward pass."""
        self._run(self._forward_pieces, units)

    def backward(self, units: Units, before: Callable[[int], None] | None) -> None:
        """Run the backward pass, see `IntegerProgram.backward`."""
        self._shared.begin_backward()
        if before is None:
            self._run(self._backward_pieces, units)
            return
        for piece in self._pieces_of_ops:
            if piece.op is not None:
                before(piece.op)
            self._run([piece], units)

    def _run(self, pieces: Iterable[Piece[Run]], units: Units) -> None:
        for piece in pieces:
            if piece.run is not None:
                piece.run(units)
            else:
                self._walk(piece.first, piece.last, units)

    def _walk(self, first: int, last: int, units: Units) -> None:
        reached = self._kernels.int_walk(byref(self._steps), first, last)
        if reached < last:
            self._begun_by[reached].check_sums(units, self._shared.units.failed)
