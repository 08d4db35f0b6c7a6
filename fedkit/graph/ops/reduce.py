"""Reductions of whole axes."""

from __future__ import annotations

import numpy as np

from fedkit.graph import ir
from fedkit.graph.spec import Random, Spec, a_map, graph_of


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


SPECS = (Spec("mean", "mean over height and width", _mean, _example, shape=_shape, reads_map=True),)
