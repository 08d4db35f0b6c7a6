"""Functions of one value at a time: sigmoid, SiLU, GELU, hard-swish and their like, in float32."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import byref
from dataclasses import astuple
from typing import Any

from fedkit.engine.kernels import native
from fedkit.engine.kernels.structs import Tensors
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.ops.function_integer import INTEGER
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.function import KINDS, MOST, SETTINGS, FunctionOp, Kind
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace
from fedkit.graph import ir


def function_of(maker: Any, op: ir.Op) -> int:
    """Add a function of the graph to a `fedkit.engine.plan.from_graph.PlanMaker`."""
    target: int = maker.target(op)
    attributes = () if op.attributes is None else astuple(op.attributes)
    ends = (-MOST, MOST)  # None is an end that is missing
    settings = (ends[n] if each is None else float(each) for n, each in enumerate(attributes))
    kind = next(kind for kind in KINDS if kind == op.kind)
    maker.ops.append(FunctionOp(maker.value(op), target, tuple(settings), kind))
    return target


class CFunction(ctypes.Structure):
    """`struct function` of kernels.h."""

    _fields_ = (
        ("source", ctypes.POINTER(native.CTensor)),
        ("target", ctypes.POINTER(native.CTensor)),
        ("a", ctypes.c_float),
        ("b", ctypes.c_float),
        ("c", ctypes.c_float),
        ("kind", ctypes.c_int32),
        ("accumulate", ctypes.c_int32),
    )


def function_struct(op: FunctionOp, tensors: Tensors) -> CFunction:
    """Return the struct of a function."""
    return CFunction(
        ctypes.pointer(tensors[op.source]),
        ctypes.pointer(tensors[op.target]),
        *(*op.settings, 0.0, 0.0, 0.0)[:3],
        kind=KINDS.index(op.kind),
    )


class FloatFunction(FloatOp[FunctionOp]):
    """Computes the slope anew in the backward pass, instead of keeping it."""

    by_tiles = True

    def __init__(self, op: FunctionOp, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        self._struct = function_struct(op, work.tensors)

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        return work.shared(work.kernels.function_forward, work.tiles, byref(self._struct))

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        for contribution in given:
            self._struct.accumulate = contribution.accumulate
            yield work.shared(work.kernels.function_backward, work.tiles, byref(self._struct))


def _example(kind: Kind, *settings: float) -> Example:
    return Example(FunctionOp(1, 2, settings, kind), ((2, 3, 4),) * 3)


_PLAIN = tuple(kind for kind in KINDS if kind not in SETTINGS and kind != "hard_swish")

FAMILY = Family(
    FunctionOp,
    (
        _example("hard_swish"),
        _example("elu", 1.5, 0.75, 0.5),
        _example("hard_sigmoid", 0.2, 0.5),
        _example("leaky_relu", 0.125),
        _example("softplus", 2.0, 1.0),
        _example("clip", -0.5, 2.0),
        *map(_example, _PLAIN),
    ),
    FloatFunction,
    INTEGER,
    dict.fromkeys(KINDS, function_of),
)
