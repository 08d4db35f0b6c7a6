"""What puts values elsewhere and computes none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedkit.graph import ir
from fedkit.graph.operands import activation, require
from fedkit.graph.spec import (
    ModelReader,
    OnnxNode,
    Random,
    Spec,
    a_map,
    any_shape,
    flat_shape,
    graph_of,
    window_graph,
    window_shape,
)
from fedkit.graph.taps import padded

FloatArray = ir.FloatArray


def _concat(op: ir.Op, graph: ir.Graph, *parts: FloatArray) -> FloatArray:
    """Join channels or features, of one input or more."""
    return np.concatenate(parts, axis=-1)


def _concat_shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    shapes = [graph.tensors[name].shape for name in op.inputs]
    return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))


def _concat_operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    return [(*shapes[0][:-1], *shape[-1:]) for shape in shapes[1:]]


def _concat_example(random: Random) -> ir.Graph:
    shape, count = any_shape(random), int(random.integers(1, 4))
    end = (*shape[:-1], shape[-1] * count)
    return graph_of((shape, end), (), ir.Op("concat", ("x",) * count, ("y",)))


def _read_concat(reader: ModelReader, node: Any, parts: Sequence[Any], dim: int) -> ir.Tensor:
    dim %= len(reader.shape_of(node))
    require(dim == 1, f"a concat over dimension {dim}; dimension 1, channels or features, can be")
    return reader.op("concat", node, [activation(part) for part in parts])


def _read_aten(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    return _read_concat(reader, node, a["tensors"], a["dim"])


def _read_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    return _read_concat(reader, node, node.inputs, node.attribute("axis", 1))


def _pad(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    """Put zeros around a map."""
    return padded(x, op.window, 0.0)


def _pad_example(random: Random) -> ir.Graph:
    top, bottom, left, right = (int(size) for size in random.integers(0, 3, 4))
    window = ir.Window(padding=(top, bottom, left, right))
    return window_graph(random, "pad", window, a_map(random))


def _reshape(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    """Keep the order of the elements."""
    return x.reshape(len(x), *graph.tensors[op.output].shape[1:])


def _reshape_shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    flat, out = flat_shape(graph, op), graph.tensors[op.output].shape
    return out if math.prod(out) == flat[1] else flat


def _reshape_example(random: Random) -> ir.Graph:
    shape = a_map(random)
    return graph_of((shape, (1, math.prod(shape))), (), ir.Op("reshape", ("x",), ("y",)))


def _flatten_nchw(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    """Give [n, c * h * w] in torch's order: channel, row, column."""
    return np.moveaxis(x, 3, 1).reshape(len(x), -1)


def _flatten_example(random: Random) -> ir.Graph:
    shape = a_map(random)
    return graph_of((shape, (1, math.prod(shape))), (), ir.Op("flatten_nchw", ("x",), ("y",)))


SPECS = (
    Spec(
        "concat",
        "concat of channels",
        _concat,
        _concat_example,
        variadic=True,
        shape=_concat_shape,
        operands=_concat_operands,
        scale="kept",
        aten=dict.fromkeys(
            ("aten.cat.default", "aten.concat.default", "aten.concatenate.default"), _read_aten
        ),
        onnx={"Concat": _read_onnx},
    ),
    Spec(
        "pad",
        "zero padding",
        _pad,
        _pad_example,
        shape=window_shape,
        has_window=True,
        scale="kept",
    ),
    Spec(
        "reshape",
        "flatten",
        _reshape,
        _reshape_example,
        shape=_reshape_shape,
        is_view=True,
        scale="kept",
    ),
    Spec(
        "flatten_nchw",
        "flatten",
        _flatten_nchw,
        _flatten_example,
        shape=flat_shape,
        reads_map=True,
        is_view=True,
        scale="kept",
    ),
)
