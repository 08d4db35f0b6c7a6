"""What looks at one place of its inputs at a time: activations, sums, a norm in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from fedkit.graph import ir
from fedkit.graph.spec import (
    Random,
    Spec,
    an_activation,
    any_shape,
    graph_of,
    unary_graph,
)

FloatArray = ir.FloatArray


def activate(activation: ir.Activation, x: FloatArray) -> FloatArray:
    """Return an activation of values."""
    if activation == "relu":
        return np.maximum(x, np.float32(0))
    if activation == "relu6":
        return np.clip(x, np.float32(0), np.float32(6))
    return x


def _affine(
    op: ir.Op, graph: ir.Graph, x: FloatArray, scale: FloatArray, shift: FloatArray
) -> FloatArray:
    """Scale and shift each channel: a BatchNorm in evaluation."""
    return x * scale + shift


def _affine_operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    return [(shapes[0][-1],)] * 2


def _affine_example(random: Random) -> ir.Graph:
    shape = any_shape(random)
    constants = list(random.standard_normal((2, shape[-1])))
    return graph_of((shape, shape), constants, ir.Op("affine", ("x", "c0", "c1"), ("y",)))


def _activation(kind: ir.Activation) -> Spec:
    def real(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
        return activate(kind, x)

    return Spec(kind, kind, real, partial(unary_graph, kind=kind), activation=kind)


def _add(op: ir.Op, graph: ir.Graph, x: FloatArray, y: FloatArray) -> FloatArray:
    return x + y


def _add_operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    return [shapes[0]]


def _add_example(random: Random) -> ir.Graph:
    shape, other = any_shape(random), ir.Op("relu", ("x",), ("r",))
    add = ir.Op("add", ("x", "r"), ("y",), activation=an_activation(random))
    return graph_of((shape,) * 3, (), other, add)


SPECS = (
    Spec(
        "affine",
        "batch norm",
        _affine,
        _affine_example,
        constants=2,
        operands=_affine_operands,
    ),
    _activation("relu"),
    _activation("relu6"),
    Spec(
        "add",
        "add",
        _add,
        _add_example,
        activations=2,
        operands=_add_operands,
        fuses_activation=True,
    ),
)
