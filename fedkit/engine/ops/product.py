"""Products of matrices that are both activations, in float32."""

from __future__ import annotations

import ctypes
from collections.abc import Container, Iterator, Sequence
from ctypes import byref
from typing import Any

from fedkit.engine.kernels import native
from fedkit.engine.kernels.network import Network
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.ops.product_integer import INTEGER
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.product import Product
from fedkit.engine.sparse.float_op import Call, FloatOp, Mode, Workspace
from fedkit.engine.sparse.tiles import gives, gradient_room, read_room
from fedkit.graph import ir


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
    def scratch_floats(network: Network, number: int, mode: Mode, stored: Container[int]) -> int:
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
    INTEGER,
    from_graph={"matmul": _planned},
)
