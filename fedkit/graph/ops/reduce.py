"""Reductions of whole axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedkit.graph import ir
from fedkit.graph.layouts import map_axis
from fedkit.graph.operands import activation, rank_of, require
from fedkit.graph.spec import ModelReader, OnnxNode, Random, Spec, a_map, graph_of


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


def _read(reader: ModelReader, node: Any, value: Any, dims: Sequence[int]) -> ir.Tensor:
    """Add a mean over height and width, or the length of a series, which `dims` must name.

    Of a map of height or width 1 they may name the other one alone.
    """
    x, rank = activation(value, 4), rank_of(reader, node)
    named = {map_axis(dim, rank) for dim in dims}
    alone = {axis for axis in (2, 3) if x.shape[axis - 1] == 1}
    possible = bool(named) and named | alone == {2, 3}
    require(possible, f"a mean over dimensions {list(dims)}; height and width can be")
    return reader.op("mean", node, [x])


def _read_aten(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    return _read(reader, node, a["self"], a["dim"] or ())


def _read_global(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    return _read(reader, node, node.inputs[0], range(2, rank_of(reader, node)))


def _read_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    return _read(reader, node, node.inputs[0], node.setting("axes", 1, ()))


SPECS = (
    Spec(
        "mean",
        "mean over height and width",
        _mean,
        _example,
        shape=_shape,
        reads_map=True,
        aten={"aten.mean.dim": _read_aten},
        onnx={"GlobalAveragePool": _read_global, "ReduceMean": _read_onnx},
    ),
)
