"""Values put elsewhere along single axes: slices, splits, flips, borders that repeat, enlargement.

A model has many words for it, and what each of them does to an axis is a list of places. So the
readers make lists, and all that comes behind them knows one op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.graph import ir
from fedkit.graph.operands import activation, constant, rank_of, require, require_small
from fedkit.graph.ops.moves import PADS, PADS_ONNX, read_reshape
from fedkit.graph.ops.resize import RESIZES_ONNX
from fedkit.graph.places import (
    EXAMPLES_MOVE,
    MANY_EXAMPLES,
    Places,
    moved,
    places_of,
    sizes_of,
    take,
    taken_shape,
)
from fedkit.graph.spec import Aten, ModelReader, Onnx, OnnxNode, Random, Spec, any_shape, graph_of

Arguments = Mapping[str, Any]


def _take(op: ir.Op, graph: ir.Graph, x: ir.FloatArray) -> ir.FloatArray:
    """Give out[n, y, x, c] = in[n, rows[y], columns[x], channels[c]]."""
    return taken(x, places_of(op))


def taken(x: NDArray[Any], places: Places) -> NDArray[Any]:
    """Return what lists take of [n, h, w, c] or [n, f], in any type."""
    for axis, each in zip((1, 2, -1), places.lists, strict=True):
        if each is not None:
            x = np.take(x, each, axis)
    return x


def _shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    return taken_shape(graph.tensors[op.inputs[0]].shape, places_of(op))


def _rules(graph: ir.Graph, op: ir.Op) -> Iterator[str]:
    shape = graph.tensors[op.inputs[0]].shape
    places = places_of(op)
    if len(shape) == 2 and (places.rows is not None or places.columns is not None):
        yield "takes rows or columns of features"
    named = zip(("rows", "columns", "channels"), sizes_of(shape), places.lists, strict=True)
    for name, size, each in named:
        if each is not None and not (each and min(each) >= 0 and max(each) < size):
            yield f"must take {name} of 0 to {size - 1}, at least one"


# Examples


def _example(random: Random) -> ir.Graph:
    shape = any_shape(random)
    lists = [_a_list(random, size) for size in sizes_of(shape)]
    if len(shape) == 2:
        lists[:2] = None, None
    places = Places(*lists)
    op = ir.Op("take", ("x",), ("y",), attributes=places)
    return graph_of((shape, taken_shape(shape, places)), (), op)


def _a_list(random: Random, size: int) -> tuple[int, ...] | None:
    """Return a random list of some kind that models have, or of none."""
    step = int(random.integers(1, 3))
    first = int(random.integers(size))
    makes: tuple[Callable[[], Any], ...] = (
        lambda: range(first, size),
        lambda: range(0, size, step),
        lambda: range(size - 1, -1, -step),
        lambda: np.arange(size * 2) // 2,
        lambda: np.pad(np.arange(size), (min(first, 2), size > 1), "reflect"),
        lambda: np.roll(np.arange(size), step),
        lambda: random.integers(0, size, int(random.integers(1, size + 3))),
    )
    number = int(random.integers(len(makes) + 1))
    return None if number == len(makes) else tuple(map(int, makes[number]()))


# Of torch


def _read_aten(reader: ModelReader, node: Any, a: Arguments) -> ir.Tensor:
    return take(reader, node, activation(a.get("self", a.get("input"))), reader.places(node))


def _read_one_of(reader: ModelReader, node: Any, a: Arguments) -> ir.Tensor:
    """Read what takes one place of a dimension, which is gone then."""
    lists = reader.places(node, dropped=a["dim"])
    kept = take(reader, node, activation(a["self"]), lists, suffix=".kept")
    return read_reshape(reader, node, kept)


_MOVES = (
    *("slice.Tensor", "narrow.default", "index_select.default", "index.Tensor"),
    *("split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default"),
    *("tensor_split.sections", "tensor_split.indices"),
    *("flip.default", "roll.default", "channel_shuffle.default"),
    *("repeat.default", "tile.default", "repeat_interleave.self_int"),
    *("upsample_nearest1d.default", "upsample_nearest1d.vec"),
    *("upsample_nearest2d.default", "upsample_nearest2d.vec"),
    *("_upsample_nearest_exact1d.default", "_upsample_nearest_exact1d.vec"),
    *("_upsample_nearest_exact2d.default", "_upsample_nearest_exact2d.vec"),
)
_ATEN: dict[str, Aten] = {
    **{f"aten.{name}": _read_aten for name in _MOVES},
    "aten.select.int": _read_one_of,
    "aten.unbind.int": _read_one_of,
    **PADS,
}


# Of ONNX


def _read_slice(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    rank = rank_of(reader, node)
    starts, ends = node.setting("starts", 1, ()), node.setting("ends", 2, ())
    axes = node.setting("axes", 3) or range(len(starts))
    steps = node.setting("steps", 4) or [1] * len(starts)
    known = len(starts) == len(ends) == len(axes) == len(steps) and all(steps)
    require(known, f"a slice from {starts} to {ends} by {steps} over {list(axes)}")
    slices = {
        axis % rank: slice(*each) for axis, *each in zip(axes, starts, ends, steps, strict=True)
    }
    every = range(MANY_EXAMPLES)
    require(every[slices.get(0, slice(None))] == every, EXAMPLES_MOVE)
    return moved(reader, node, lambda axis, size: range(size)[slices.get(axis, slice(None))])


def _read_split(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    along = node.attribute("axis", 0) % rank_of(reader, node)
    require(along != 0, "a split of examples; each stays by itself")
    *before, own = [shape[along] for shape in node.shapes[: node.number + 1]]
    first = sum(before)
    return moved(
        reader,
        node,
        lambda axis, size: range(first, first + own) if axis == along else range(size),
    )


def _read_gather(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    indices = constant(node.operand(1), "indices")
    along = node.attribute("axis", 0) % rank_of(reader, node)
    require(indices.ndim <= 1, f"indices of shape {indices.shape}; a list can be")

    def places(axis: int, size: int) -> NDArray[Any]:
        if axis != along:
            return np.arange(size)
        inside = (-size <= indices) & (indices < size)
        require(bool(inside.all()), f"indices beyond the {size} places of dimension {axis}")
        return np.asarray(np.atleast_1d(indices % size))

    suffix = "" if indices.ndim else ".kept"
    return read_reshape(reader, node, moved(reader, node, places, suffix))


def _read_tile(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    repeats = node.setting("repeats", 1, ())
    require_small(reader.shape_of(node))
    require(len(repeats) == rank_of(reader, node), f"repeats {repeats}, not one per dimension")
    return moved(reader, node, lambda axis, size: list(range(size)) * int(repeats[axis]))


_ONNX: dict[str, Onnx] = {
    "Slice": _read_slice,
    "Split": _read_split,
    "Gather": _read_gather,
    "Tile": _read_tile,
    **RESIZES_ONNX,
    **PADS_ONNX,
}

SPECS = (
    Spec(
        "take",
        "slice, split, flip, roll, repetition, reflecting or repeating padding, nearest resize",
        _take,
        _example,
        shape=_shape,
        rules=_rules,
        scale="kept",
        attributes=Places,
        aten=_ATEN,
        onnx=_ONNX,
    ),
)
