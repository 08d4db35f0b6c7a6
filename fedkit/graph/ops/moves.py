"""What puts values elsewhere and computes none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fedkit.graph import ir
from fedkit.graph.layouts import map_axis, order_is_free
from fedkit.graph.operands import activation, number, rank_of, require, require_small
from fedkit.graph.places import take
from fedkit.graph.spec import (
    Aten,
    ModelReader,
    Onnx,
    OnnxNode,
    Random,
    Spec,
    a_map,
    flat_shape,
    graph_of,
    window_graph,
    window_shape,
)
from fedkit.graph.taps import padded

FloatArray = ir.FloatArray


def _pad(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    """Put zeros around a map."""
    return padded(x, op.window, 0.0)


def _pad_example(random: Random) -> ir.Graph:
    top, bottom, left, right = (int(size) for size in random.integers(0, 3, 4))
    window = ir.Window(padding=(top, bottom, left, right))
    return window_graph(random, "pad", window, a_map(random))


def _read_zeros(
    reader: ModelReader, node: Any, x: ir.Tensor, value: float, sides: Sequence[int]
) -> ir.Tensor:
    """Add a padding by zeros at (top, bottom, left, right); what is negative cuts off."""
    require(value == 0, f"constant padding with {value}; zeros can be")
    size = x.shape[1:3]
    cuts = [max(0, -side) for side in sides]
    ends = [size[0] - cuts[1], size[1] - cuts[3]]
    lists = {2: range(cuts[0], ends[0]), 3: range(cuts[2], ends[1])}
    top, bottom, left, right = (max(0, side) for side in sides)
    if not any((top, bottom, left, right)):
        return take(reader, node, x, lists)
    cut = take(reader, node, x, lists, suffix=".cut")
    return reader.op("pad", node, [cut], window=ir.Window(padding=(top, bottom, left, right)))


def _read_pad_aten(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    mode = a.get("mode", "constant")
    if mode != "constant":
        return _read_border(reader, node, a)
    x, sizes = activation(a["self"], 4), rank_of(reader, node) - 2
    require(len(a["pad"]) <= 2 * sizes, f"padding by {a['pad']}; height and width can grow")
    left, right, top, bottom = [*a["pad"], 0, 0, 0, 0][:4]
    return _read_zeros(reader, node, x, a["value"] or 0, (top, bottom, left, right))


def _read_border(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    """Read a padding by what lies inside: reflected, repeated, or from the other end."""
    return take(reader, node, activation(a["self"]), reader.places(node))


def _read_pad_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    x, rank = activation(node.operand(0), 4), rank_of(reader, node)
    amounts, value = node.setting("pads", 1, (0,) * 2 * rank), number(node, "value", 2, 0.0)
    axes = [map_axis(axis, rank) for axis in (node.setting("axes", 3) or range(rank))]
    require(len(amounts) == 2 * len(set(axes)), f"{len(amounts)} pads for the axes {axes}")
    first, last = (dict(zip(axes, half, strict=True)) for half in np.reshape(amounts, (2, -1)))
    sides = [int(side.pop(axis, 0)) for axis in (2, 3) for side in (first, last)]
    grows = any([*first.values(), *last.values()])
    require(not grows, f"padding by {list(amounts)}; height and width can grow")
    mode = node.attribute("mode", "constant")
    if mode == "constant":
        return _read_zeros(reader, node, x, value, sides)
    require(mode in _BORDERS, f"{mode} padding; constant, {', '.join(_BORDERS)} can be")
    pairs = (sides[:2], sides[2:])
    rows, columns = (
        _bordered(size, each, mode) for size, each in zip(x.shape[1:3], pairs, strict=True)
    )
    return take(reader, node, x, {2: rows, 3: columns})


_BORDERS: Mapping[str, Literal["reflect", "edge", "wrap"]] = {
    "reflect": "reflect",
    "edge": "edge",
    "wrap": "wrap",
}


def _bordered(size: int, sides: Sequence[int], mode: str) -> Sequence[int]:
    """Return the places of an axis with a border, or, where a side is negative, without its end."""
    before, after = (max(0, side) for side in sides)
    require_small((size, before + after))
    require(mode != "reflect" or max(before, after) < size, f"{size} values reflected {sides}")
    grown: list[int] = np.pad(np.arange(size), (before, after), _BORDERS[mode]).tolist()
    return grown[max(0, -sides[0]) : len(grown) - max(0, -sides[1])]


PADS: dict[str, Aten] = {
    **dict.fromkeys(("aten.pad.default", "aten.constant_pad_nd.default"), _read_pad_aten),
    **{
        f"aten.{kind}_pad{rank}d.default": _read_border
        for kind in ("reflection", "replication")
        for rank in (1, 2)
    },
}
PADS_ONNX: dict[str, Onnx] = {"Pad": _read_pad_onnx}
"""Paddings take places, but those by zeros that only grow."""


def _reshape(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    """Keep the order of the elements."""
    return x.reshape(len(x), *graph.tensors[op.output].shape[1:])


def _reshape_shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    flat, out = flat_shape(graph, op), graph.tensors[op.output].shape
    return out if math.prod(out) == flat[1] else flat


def _reshape_example(random: Random) -> ir.Graph:
    shape = a_map(random)
    _, height, width, channels = shape
    ends: tuple[ir.Shape, ...] = (
        (1, math.prod(shape)),
        (1, 1, height * width, channels),
        (1, channels, width, height),
        (1, width, 1, height * channels),
    )
    end = ends[int(random.integers(len(ends)))]
    return graph_of((shape, end), (), ir.Op("reshape", ("x",), ("y",)))


def _flatten_nchw(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    """Give [n, c * h * w] in torch's order: channel, row, column."""
    return np.moveaxis(x, 3, 1).reshape(len(x), -1)


def _flatten_example(random: Random) -> ir.Graph:
    shape = a_map(random)
    return graph_of((shape, (1, math.prod(shape))), (), ir.Op("flatten_nchw", ("x",), ("y",)))


def read_reshape(reader: ModelReader, node: Any, x: ir.Tensor) -> ir.Tensor:
    """Add what brings `x` into the shape of the node's result, if anything must."""
    out = reader.shape_of(node)
    if x.shape == out:
        return x
    if order_is_free(x.shape) and order_is_free(out):
        return reader.op("reshape", node, [x], out)
    is_flatten = len(x.shape) == 4 and out == (1, math.prod(x.shape))
    require(is_flatten, f"a reshape of {x.shape} to {out} (NHWC); flatten to [n, features] can be")
    return reader.op("flatten_nchw", node, [x], out)


def _read_reshape_aten(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    return read_reshape(reader, node, activation(a["self"]))


def require_axes(node: OnnxNode) -> None:
    """Raise `Unsupported` for axes that a node counts as its opset does not."""
    axes = node.attribute("axes", ())
    known = node.opset >= 11 or min(axes, default=0) >= 0
    require(known, f"axes = {list(axes)}; before opset 11 they count from the front")


def _read_reshape_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    require_axes(node)
    return read_reshape(reader, node, activation(node.operand(0)))


_RESHAPES: dict[str, Aten] = dict.fromkeys(
    (
        "aten.flatten.using_ints",
        "aten.view.default",
        "aten.reshape.default",
        "aten.squeeze.dims",
        "aten.squeeze.dim",
        "aten.unsqueeze.default",
        "aten.unflatten.int",
    ),
    _read_reshape_aten,
)
_RESHAPES_ONNX: dict[str, Onnx] = dict.fromkeys(
    ("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _read_reshape_onnx
)

SPECS = (
    Spec(
        "pad",
        "zero padding",
        _pad,
        _pad_example,
        shape=window_shape,
        has_window=True,
        scale="kept",
        aten=PADS,
        onnx=PADS_ONNX,
    ),
    Spec(
        "reshape",
        "flatten",
        _reshape,
        _reshape_example,
        shape=_reshape_shape,
        is_view=True,
        scale="kept",
        aten=_RESHAPES,
        onnx=_RESHAPES_ONNX,
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
        aten=_RESHAPES,
        onnx=_RESHAPES_ONNX,
    ),
)
