"""Calls of a pass as a table of steps, which the kernels take in one call.

What is no kernel is called between two walks.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from fedkit.engine.kernels import native
from fedkit.engine.kernels.structs import pointer
from fedkit.engine.plan.pieces import Piece, joined
from fedkit.engine.sparse.float_op import Call, Floats, KernelCall


class Team:
    """Threads that walk, and end with it.

    Args:
        kernels: The compiled kernels.
        threads: How many with the caller, who walks too.
        scratch: Memory of each, float32 [threads, floats]; it holds both.
        sums: The same for what it adds up.

    Attributes:
        struct: What the kernels take.
    """

    def __init__(
        self, kernels: native.Kernels, threads: int, scratch: Floats, sums: Floats
    ) -> None:
        self._memory = scratch, sums
        crew = kernels.begin_crew(threads) if threads > 1 else None
        self.struct = native.CTeam(
            crew=crew,
            scratch=pointer(scratch),
            sums=pointer(sums),
            scratch_floats=scratch.shape[1],
            sums_floats=sums.shape[1],
            threads=threads,
        )
        if crew is not None:
            # Not when the process exits, which ends them all: some may be walking still.
            weakref.finalize(self, kernels.end_crew, crew).atexit = False


class Walk:
    """Makes the calls of a pass.

    It holds what its steps point to, and not the program, whose memory goes with it.

    Args:
        kernels: The compiled kernels.
        team: Who takes the steps.
        calls: In order, each with the op whose backward pass it begins, or None.
    """

    def __init__(
        self,
        kernels: native.Kernels,
        team: Team,
        calls: Iterable[tuple[int | None, Call]],
    ) -> None:
        self._kernels, self._team = kernels, team
        self._calls = list[KernelCall]()
        pieces = [self._piece(op, call) for op, call in calls]
        self._pieces, self._pieces_of_ops = joined(pieces), joined(pieces, through=False)
        self._steps = (native.CStep * len(self._calls))(
            *(_step(kernels, call) for call in self._calls)
        )

    def _piece(self, op: int | None, call: Call) -> Piece[Callable[[], object]]:
        at = len(self._calls)
        if not isinstance(call, KernelCall):
            return Piece(at, at, call, op)
        self._calls.append(call)
        return Piece(at, at + 1, op=op)

    def at(self, unit: int) -> Walk:
        """Let the calls that are shared begin at a unit; return the walk."""
        for step, call in zip(self._steps, self._calls, strict=True):
            if call.units is not None:
                step.begin = unit
        return self

    def run(self, before: Callable[[int], None] | None = None) -> None:
        """Make all calls; `before` is called with the number of each op that begins."""
        for piece in self._pieces if before is None else self._pieces_of_ops:
            if before is not None and piece.op is not None:
                before(piece.op)
            if piece.run is not None:
                piece.run()
            else:
                self._kernels.walk(self._steps, piece.first, piece.last, self._team.struct)


def _step(kernels: native.Kernels, call: KernelCall) -> native.CStep:
    step = native.CStep(
        run=kernels.step(call.kernel), units=1 if call.units is None else call.units
    )
    addresses, numbers = 0, 0
    for argument in call.arguments:
        if isinstance(argument, int):
            step.numbers[numbers] = argument
            numbers += 1
        elif isinstance(argument, ctypes.c_double):
            step.real = argument.value
        else:
            step.pointers[addresses] = _address(argument)
            addresses += 1
    for place, each in enumerate(call.sums):
        step.sums[place], step.counts[place] = each
    return step


def _address(argument: Any) -> int | None:
    """Return the address that a `c_void_p` holds, or of what `byref` refers to."""
    if isinstance(argument, ctypes.c_void_p):
        return argument.value
    return ctypes.addressof(argument._obj)
