"""What looks at one place of its inputs at a time: activations, sums, a norm in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from fedkit.graph import ir
from fedkit.graph.spec import (
    Random,
    Real,
    Scale,
    Spec,
    an_activation,
    any_shape,
    broadcast_operands,
    broadcast_shape,
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


def _sub(op: ir.Op, graph: ir.Graph, x: FloatArray, y: FloatArray) -> FloatArray:
    return x - y


def _mul(op: ir.Op, graph: ir.Graph, x: FloatArray, y: FloatArray) -> FloatArray:
    return x * y


def _add_example(random: Random) -> ir.Graph:
    shape, other = any_shape(random), ir.Op("relu", ("x",), ("r",))
    add = ir.Op("add", ("x", "r"), ("y",), activation=an_activation(random))
    return graph_of((shape,) * 3, (), other, add)


def _pair_example(kind: ir.Kind, random: Random) -> ir.Graph:
    """Return two of one shape, a gate per channel, one of a map, or a constant, at either place."""
    shape, how = any_shape(random), random.random()
    if how < 0.25:
        part = tuple(size if random.random() < 0.6 else 1 for size in shape[1:])
        constant = random.standard_normal((1, *part))
        op = ir.Op(kind, _either(random, "x", "c0"), ("y",))
        return graph_of((shape, shape), (constant,), op)
    if how < 0.65 and len(shape) == 4:
        gate = ir.Op("mean", ("x",), ("r",))
        end = (1, 1, 1, shape[3])
        op = ir.Op(kind, _either(random, "x", "r"), ("y",))
        return graph_of((shape, end, shape), (), gate, op)
    other = ir.Op("relu", ("x",), ("r",))
    return graph_of((shape,) * 3, (), other, ir.Op(kind, _either(random, "x", "r"), ("y",)))


def _either(random: Random, x: str, other: str) -> tuple[str, str]:
    return (x, other) if random.random() < 0.5 else (other, x)


def _pair(kind: ir.Kind, layer: str, real: Real, scale: Scale) -> Spec:
    return Spec(
        kind,
        layer,
        real,
        partial(_pair_example, kind),
        activations=2,
        takes_constant=True,
        shape=broadcast_shape,
        operands=broadcast_operands,
        scale=scale,
    )


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
        takes_constant=True,
        shape=broadcast_shape,
        operands=broadcast_operands,
        fuses_activation=True,
    ),
    _pair("sub", "difference", _sub, "rescaled"),
    _pair("mul", "product", _mul, "product"),
)
