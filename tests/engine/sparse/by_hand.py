"""Calls of kernels made one by one, as their C declarations have them, by one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ctypes import c_void_p
from typing import Any
from unittest import mock

from fedkit.engine.kernels import native
from fedkit.engine.sparse import program
from fedkit.engine.sparse.float_op import Call, KernelCall
from fedkit.engine.sparse.one_call import Team


class WalkByHand:
    """Stands in for `Walk`; no table of steps is made."""

    def __init__(
        self,
        kernels: native.Kernels,
        team: Team,
        calls: Iterable[tuple[int | None, Call]],
    ) -> None:
        self._calls, self._team = [*calls], team

    def run(self, before: Callable[[int], None] | None = None) -> None:
        for op, call in self._calls:
            if before is not None and op is not None:
                before(op)
            if isinstance(call, KernelCall):
                call.kernel(*call.arguments, *self._rest(call))
            else:
                call()

    def _rest(self, call: KernelCall) -> Iterator[Any]:
        if call.units is not None:
            yield from (0, call.units)
        if call.scratch:
            yield c_void_p(self._team.struct.scratch)
        yield from (c_void_p(each.address) for each in call.sums)


@contextmanager
def by_hand() -> Iterator[None]:
    """Let programs that are made meanwhile walk by hand."""
    with mock.patch.object(program, "Walk", WalkByHand):
        yield
