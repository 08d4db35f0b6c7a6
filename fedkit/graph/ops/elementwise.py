"""What looks at one place of its input at a time: ReLUs, and a scale and shift per channel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedkit.graph import ir
from fedkit.graph.operands import activation, constant, number, require, require_broadcast
from fedkit.graph.ops.arithmetic import AFFINE
from fedkit.graph.spec import (
    Aten,
    ModelReader,
    Onnx,
    OnnxNode,
    Random,
    Spec,
    any_shape,
    graph_of,
    unary_graph,
)

FloatArray = ir.FloatArray


@dataclass(frozen=True)
class Bounds(ir.Attributes):
    """The ends of a clamp, where it has them."""

    low: float | None
    high: float | None


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


def _activation(kind: ir.Activation, onnx: Mapping[str, Onnx]) -> Spec:
    def real(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
        return activate(kind, x)

    read: Aten = partial(_read_plain, kind)
    return Spec(
        kind,
        kind,
        real,
        partial(unary_graph, kind=kind),
        activation=kind,
        of_one_place=True,
        aten={f"aten.{kind}.default": read, f"aten.{kind}_.default": read, **CLAMP["aten"]},
        onnx={**onnx, **CLAMP["onnx"]},
    )


def _clamp(
    reader: ModelReader, node: Any, x: ir.Tensor, low: float | None, high: float | None
) -> ir.Tensor:
    """Add the ReLU, ReLU6 or other clamp; None means no bound."""
    if low == 0 and high in (None, 6):
        return reader.op("relu6" if high else "relu", node, [x])
    ends = [None if bound is None else float(bound) for bound in (low, high)]
    known = [bound for bound in ends if bound is not None]
    fits = known == sorted(known) and all(map(math.isfinite, known))
    require(bool(known) and fits, f"a clamp to [{low}, {high}]; the ends must be in order")
    return reader.op("clip", node, [x], attributes=Bounds(ends[0], ends[1]))


def _read_clamp(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    low, high = (a.get(f"{end}_val", a.get(end)) for end in ("min", "max"))
    return _clamp(reader, node, activation(a["self"]), low, high)


def _read_clip(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    low, high = number(node, "min", 1), number(node, "max", 2)
    most = float(np.finfo(np.float32).max)
    low, high = (None if each is None or abs(each) >= most else each for each in (low, high))
    return _clamp(reader, node, activation(node.operand(0)), low, high)


def _read_extreme(operator: str, reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    """Add the clamp that the larger or smaller of a value and a number is."""
    require(len(node.inputs) == 2, f"{operator} of {len(node.inputs)} values; of two can be")
    x, bound = sorted(node.inputs, key=lambda each: not isinstance(each, ir.Tensor))
    require_broadcast(operator, node)
    end = np.asarray(constant(bound, "the other value"))
    require(end.size == 1, f"{operator} with {end.size} numbers; with one can be")
    value = float(end.item())
    low, high = (value, None) if operator == "Max" else (None, value)
    return _clamp(reader, node, activation(x), low, high)


def _read_plain(kind: ir.Kind, reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    return reader.op(kind, node, [activation(a["self"])])


def _read_relu_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    return reader.op("relu", node, [activation(node.operand(0))])


CLAMP: dict[str, Any] = {
    "aten": {
        f"aten.{name}{place}.default": _read_clamp
        for name in ("hardtanh", "clamp", "clamp_min", "clamp_max", "clip")
        for place in ("", "_")
    },
    "onnx": {
        "Clip": _read_clip,
        **{name: partial(_read_extreme, name) for name in ("Max", "Min")},
    },
}
"""What reads clamps, of which those from 0 on are a ReLU or ReLU6."""


SPECS = (
    Spec(
        "affine",
        "batch norm",
        _affine,
        _affine_example,
        constants=2,
        operands=_affine_operands,
        of_one_place=True,
        **AFFINE,
    ),
    _activation("relu", {"Relu": _read_relu_onnx}),
    _activation("relu6", {}),
)
