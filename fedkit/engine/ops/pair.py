"""Products and differences of two tensors, and sums of which one has a pixel per channel."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Literal, get_args

from fedkit.engine.kernels import native
from fedkit.engine.kernels.structs import Tensors
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import Plan, PlanOp, Shape, strict
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace

Kind = Literal["mul", "sub", "add-gate"]
"""In the order of `enum pair_kind` of pair.h. Sums of equal shapes are an `Add`, whose gradients
may share memory."""

_KINDS: tuple[Kind, ...] = get_args(Kind)


@strict
@dataclass(frozen=True)
class PairOp(PlanOp):
    """target = read(left) * read(right), or their difference or sum.

    Both have the shape of the target, (channels, height, width), or one of them (channels, 1, 1)
    and goes with every pixel.
    """

    left: int
    right: int
    target: int
    kind: Kind

    @property
    def sources(self) -> tuple[int, ...]:
        """See `PlanOp.sources`."""
        return self.left, self.right

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return self.kind == "mul"

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        left, right, target = (plan.tensors[t].shape for t in (*self.sources, self.target))
        if target != paired(left, right):
            yield (
                f"combines {left} and {right} into {target}; the shapes must be equal, or one of "
                "the two have a single pixel per channel"
            )


def paired(left: Shape, right: Shape) -> Shape | None:
    """Return what a pair of two shapes has; None: they are no pair."""
    one, other = sorted((left, right), key=lambda shape: shape[1:] == (1, 1))
    return one if other in (one, (one[0], 1, 1)) else None


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
    return CPairOp(*ends, kind=_KINDS.index(op.kind), side=side)


def sides(op: PairOp, given: Sequence[Contribution]) -> Iterator[tuple[int, Contribution]]:
    """Yield what each side gets, 0 for the left one: two contributions, if both are one tensor."""
    needing = {contribution.tensor for contribution in given}
    which = (side for side, source in enumerate(op.sources) if source in needing)
    return zip(which, given, strict=True)


class FloatPair(FloatOp[PairOp]):
    """Reads the other side again to give a product's gradients."""

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


_MAP: Shape = (2, 3, 4)
_GATE: Shape = (2, 1, 1)

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
    None,
)
