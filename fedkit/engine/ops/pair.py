"""Products and differences of two tensors, and sums of which one has a pixel per channel."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import byref

from fedkit.engine.kernels import native
from fedkit.engine.kernels.structs import Tensors
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.ops.pair_integer import INTEGER
from fedkit.engine.plan.execution import Contribution, sides
from fedkit.engine.plan.pair import KINDS, PairOp
from fedkit.engine.plan.structure import Shape
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace


class CPairOp(ctypes.Structure):
    """`struct pair` of kernels.h."""

    _fields_ = (
        ("left", ctypes.POINTER(native.CTensor)),
        ("right", ctypes.POINTER(native.CTensor)),
        ("target", ctypes.POINTER(native.CTensor)),
        ("kind", ctypes.c_int32),
        ("side", ctypes.c_int32),
        ("accumulate", ctypes.c_int32),
    )


def pair_struct(op: PairOp, tensors: Tensors, side: int) -> CPairOp:
    """Return the struct of a pair that gives a side its gradient, 0: the left one."""
    ends = (ctypes.pointer(tensors[each]) for each in (*op.sources, op.target))
    return CPairOp(*ends, kind=KINDS.index(op.kind), side=side)


class FloatPair(FloatOp[PairOp]):
    """Reads the other side again to give a product's gradients."""

    by_tiles = True

    def __init__(self, op: PairOp, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        self._structs = [pair_struct(op, work.tensors, side) for side in (0, 1)]

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        return work.shared(work.kernels.pair_forward, work.tiles, byref(self._structs[0]))

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        for side, contribution in sides(self.op, given):
            struct = self._structs[side]
            struct.accumulate = contribution.accumulate
            yield work.shared(work.kernels.pair_backward, work.tiles, byref(struct))


_MAP: Shape = (3, 3, 4)
_GATE: Shape = (3, 1, 1)

FAMILY = Family(
    PairOp,
    (
        Example(PairOp(1, 2, 3, "mul"), (_MAP, _MAP, _GATE, _MAP)),
        Example(PairOp(1, 2, 3, "sub"), (_MAP, _GATE, _MAP, _MAP)),
        Example(PairOp(1, 2, 3, "mul"), (_MAP,) * 4),
        Example(PairOp(1, 2, 3, "sub"), (_MAP,) * 4),
        Example(PairOp(1, 2, 3, "add-gate"), (_MAP, _MAP, _GATE, _MAP)),
    ),
    FloatPair,
    INTEGER,
)
