"""Products of matrices that are both activations, in float32."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Any, Literal

from fedkit.engine.kernels import native
from fedkit.engine.kernels.network import Network
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import Plan, PlanOp, strict
from fedkit.engine.sparse.float_op import Call, FloatOp, Mode, Workspace
from fedkit.engine.sparse.tiles import gives, gradient_room, read_room
from fedkit.graph import ir


@strict
@dataclass(frozen=True)
class Product(PlanOp):
    """target[n, row, m] = sum over k of read(left)[k, row, m] * read(right)[n, row, k].

    Of (channels, rows, columns) each row of a map holds a matrix, of its columns by its channels.

    Attributes:
        left: Of shape (terms, rows, m).
        right: (n, rows, terms).
        target: (n, rows, m).
    """

    left: int
    right: int
    target: int
    kind: Literal["product"] = "product"

    @property
    def sources(self) -> tuple[int, ...]:
        """See `PlanOp.sources`."""
        return self.left, self.right

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        left, right, target = (plan.tensors[t].shape for t in (*self.sources, self.target))
        terms, rows, columns = left
        if right[1:] != (rows, terms) or target != (right[0], rows, columns):
            yield f"multiplies {left} by {right} into {target}; matrices of rows must go together"


class CProduct(ctypes.Structure):
    """`struct product` of kernels.h."""

    _fields_ = (
        ("left", ctypes.POINTER(native.CTensor)),
        ("right", ctypes.POINTER(native.CTensor)),
        ("target", ctypes.POINTER(native.CTensor)),
        ("rows", ctypes.c_int32),
        ("gives_left", ctypes.c_int32),
        ("gives_right", ctypes.c_int32),
    )


class FloatProduct(FloatOp[Product]):
    """Blocks of sums in registers; each pass reads both sides again."""

    def __init__(self, op: Product, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        ends = (ctypes.pointer(work.tensors[each]) for each in (*op.sources, op.target))
        self._struct = CProduct(*ends, rows=work.plan.tensors[op.target].shape[1])

    @staticmethod
    def scratch_floats(network: Network, number: int, mode: Mode) -> int:
        """See `FloatOp.scratch_floats`."""
        plan, op = network.plan, network.plan.ops[number]
        values = read_room(plan, op.sources) + gradient_room(plan, op.target)
        return values * network.kernels.lanes

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        kernel, struct = work.kernels.product_forward, byref(self._struct)
        return work.shared(kernel, work.tiles, struct, scratch=True)

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        if given:
            self._struct.gives_left, self._struct.gives_right = gives(self.op, given)
            kernel, struct = work.kernels.product_backward, byref(self._struct)
            yield work.shared(kernel, work.tiles, struct, scratch=True)


def _planned(maker: Any, op: ir.Op) -> int:
    left, right, target = maker.value(op), maker.value(op, 1), maker.target(op)
    maker.ops.append(Product(left, right, target))
    return int(target)


FAMILY = Family(
    Product,
    (
        Example(Product(1, 2, 3), ((3, 2, 7), (5, 2, 7), (4, 2, 5), (4, 2, 7))),
        Example(Product(1, 2, 3), ((2, 1, 9), (6, 1, 9), (9, 1, 6), (9, 1, 9))),
        Example(Product(1, 2, 3), ((3, 2, 3), (2, 2, 3), (4, 2, 2), (4, 2, 3))),
    ),
    FloatProduct,
    integer=None,
    from_graph={"matmul": _planned},
)
