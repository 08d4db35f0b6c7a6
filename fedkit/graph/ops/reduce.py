"""Reductions of whole axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedkit.graph import ir
from fedkit.graph.arrange import arrange, plain
from fedkit.graph.elements import Moved, whole
from fedkit.graph.layouts import map_axis, model_shape
from fedkit.graph.operands import activation, rank_of, require
from fedkit.graph.ops.weighted import total
from fedkit.graph.spec import (
    Aten,
    ModelReader,
    Onnx,
    OnnxNode,
    Random,
    Spec,
    a_map,
    graph_of,
    window_graph,
    window_shape,
)
from fedkit.graph.taps import taps

Arguments = Mapping[str, Any]


def _mean(op: ir.Op, graph: ir.Graph, x: ir.FloatArray) -> ir.FloatArray:
    """Average over height and width, which stay as 1 or go."""
    means: ir.FloatArray = x.mean(axis=(1, 2), dtype=np.float32)
    return means.reshape(len(x), *graph.tensors[op.output].shape[1:])


def _shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    channels = graph.tensors[op.inputs[0]].shape[-1]
    is_flat = len(graph.tensors[op.output].shape) == 2
    return (1, channels) if is_flat else (1, 1, 1, channels)


def _example(random: Random) -> ir.Graph:
    shape = a_map(random)
    end = (1, shape[3]) if random.random() < 0.5 else (1, 1, 1, shape[3])
    return graph_of((shape, end), (), ir.Op("mean", ("x",), ("y",)))


def _sum(op: ir.Op, graph: ir.Graph, x: ir.FloatArray) -> ir.FloatArray:
    return total(tap.copy() for _, _, tap in taps(x, op.window))


def _example_of_sum(random: Random) -> ir.Graph:
    shape = a_map(random)
    kernels = ((shape[1], shape[2]), (shape[1], 1), (1, shape[2]))
    kernel = kernels[int(random.integers(3))]
    return window_graph(random, "sum_pool2d", ir.Window(kernel, kernel), shape)


# Readers


@dataclass(frozen=True)
class _Over:
    """What is done over axes: a mean, a sum or the largest."""

    what: str
    pool: ir.Kind
    whole: ir.Kind
    """Over a whole map, of which a kind by itself may be."""


_MEAN = _Over("mean", "avg_pool2d", "mean")
_SUM = _Over("sum", "sum_pool2d", "sum_pool2d")
_MOST = _Over("maximum", "max_pool2d", "max_pool2d")


def _reduced(
    over: _Over, reader: ModelReader, node: Any, value: Any, dims: Sequence[int], keeps: bool
) -> ir.Tensor | Moved:
    """Add what is done over dimensions of the model, none of which holds the examples."""
    x, rank = activation(value), rank_of(reader, node)
    require(all(-rank <= dim < rank for dim in dims), f"a {over.what} over {list(dims)}")
    named = sorted({dim % rank for dim in dims})
    mixes = f"a {over.what} over dimensions {list(dims)}, which mixes the examples"
    require(bool(named) and named[0] != 0, mixes)
    sizes = model_shape(x.shape, rank)
    kept = [size for dim, size in enumerate(sizes, 1) if dim not in named]
    left = [1 if dim in named else size for dim, size in enumerate(sizes, 1)]
    axes = {map_axis(dim, rank) for dim in named}
    if 1 in axes:
        x = _with_channels_first(reader, node, whole(x, sizes), named)
        axes = {2, 3}
    made = _pooled(over, reader, node, x, axes)
    return plain(whole(made, left if keeps else kept))


def _with_channels_first(
    reader: ModelReader, node: Any, moved: Moved, named: Sequence[int]
) -> ir.Tensor:
    """Return a map of which height and width are what is reduced, and channels all else."""
    axes = [dim - 1 for dim in named]
    others = [axis for axis in range(moved.numbers.ndim) if axis not in axes]
    sizes = moved.numbers.shape
    last = sizes[axes[-1]]
    first = math.prod(sizes[axis] for axis in axes[:-1])
    laid = moved.by(lambda each: each.transpose(*others, *axes).reshape(-1, first, last))
    return arrange(reader, node, laid, ".laid")


def _pooled(over: _Over, reader: ModelReader, node: Any, x: ir.Tensor, axes: set[int]) -> ir.Tensor:
    """Add a pooling over whole rows, columns or both."""
    _, height, width, channels = x.shape
    kernel = (height if 2 in axes else 1, width if 3 in axes else 1)
    out = (1, height // kernel[0], width // kernel[1], channels)
    if kernel == (1, 1):
        return x
    if out[1:3] == (1, 1) and over.whole != over.pool:
        return reader.op(over.whole, node, [x], out)
    return reader.op(over.pool, node, [x], out, ir.Window(kernel, kernel))


def _is_mean_of_maps(reader: ModelReader, node: Any, x: ir.Tensor, dims: Sequence[int]) -> bool:
    """Whether dimensions are height and width, or one of them if the other is 1."""
    rank = rank_of(reader, node)
    if len(x.shape) != 4 or not all(-rank <= dim < rank for dim in dims):
        return False
    named = {map_axis(dim, rank) for dim in dims}
    alone = {axis for axis in (2, 3) if x.shape[axis - 1] == 1}
    return bool(named) and named | alone == {2, 3}


def _mean_of(
    reader: ModelReader, node: Any, value: Any, dims: Sequence[int], keeps: bool
) -> ir.Tensor | Moved:
    x = activation(value)
    if _is_mean_of_maps(reader, node, x, dims):
        return reader.op("mean", node, [x])
    return _reduced(_MEAN, reader, node, x, dims, keeps)


def _read_aten(over: _Over, reader: ModelReader, node: Any, a: Arguments) -> ir.Tensor | Moved:
    kind, dims = str(a.get("dtype")), a["dim"]
    require(kind in ("None", "torch.float32"), f"a {over.what} in {kind}; float32 can be")
    named = [dims] if isinstance(dims, int) else dims or ()
    if over is _MEAN:
        return _mean_of(reader, node, a["self"], named, a["keepdim"])
    return _reduced(over, reader, node, a["self"], named, a["keepdim"])


def _read_global(over: _Over, reader: ModelReader, node: OnnxNode) -> ir.Tensor | Moved:
    x, dims = activation(node.inputs[0], 4), range(2, rank_of(reader, node))
    if over is _MEAN:
        return reader.op("mean", node, [x])
    return _reduced(over, reader, node, x, dims, True)


def _read_onnx(over: _Over, reader: ModelReader, node: OnnxNode) -> ir.Tensor | Moved:
    x, axes = activation(node.inputs[0]), node.setting("axes", 1, ()) or ()
    keeps = bool(node.attribute("keepdims", 1))
    if not axes and node.attribute("noop_with_empty_axes", 0):
        return x
    if over is _MEAN:
        return _mean_of(reader, node, x, axes, keeps)
    return _reduced(over, reader, node, x, axes, keeps)


MEANS: Mapping[str, Aten] = {"aten.mean.dim": partial(_read_aten, _MEAN)}
MEANS_ONNX: Mapping[str, Onnx] = {
    "GlobalAveragePool": partial(_read_global, _MEAN),
    "ReduceMean": partial(_read_onnx, _MEAN),
}
LARGEST: Mapping[str, Aten] = dict.fromkeys(
    ("aten.amax.default", "aten.max.dim"), partial(_read_aten, _MOST)
)
LARGEST_ONNX: Mapping[str, Onnx] = {
    "GlobalMaxPool": partial(_read_global, _MOST),
    "ReduceMax": partial(_read_onnx, _MOST),
}
"""A mean over some axes is an average pooling, and the largest a max pooling."""


SPECS = (
    Spec(
        "mean",
        "mean over height and width",
        _mean,
        _example,
        shape=_shape,
        reads_map=True,
        aten=MEANS,
        onnx=MEANS_ONNX,
    ),
    Spec(
        "sum_pool2d",
        "sum over axes",
        _sum,
        _example_of_sum,
        shape=window_shape,
        has_window=True,
        aten={"aten.sum.dim_IntList": partial(_read_aten, _SUM)},
        onnx={"ReduceSum": partial(_read_onnx, _SUM)},
    ),
)
