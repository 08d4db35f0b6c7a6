"""Random inputs of graphs, which are numbers or tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.graph import ir
from fedkit.graph.ops.registry import tokens_of

Random = np.random.Generator


def integers_for(graph: ir.Graph, random: Random, count: int) -> NDArray[Any]:
    """Return inputs [count, ...] of an int8 graph: int8 of every size, or int32 tokens."""
    shape = (count, *graph.tensors[graph.inputs[0]].shape[1:])
    if tokens := tokens_of(graph):
        return random.integers(tokens, size=shape).astype(np.int32)
    return random.integers(-128, 128, shape).astype(np.int8)


def floats_for(graph: ir.Graph, random: Random, count: int, reach: float = 1) -> ir.FloatArray:
    """Return inputs [count, ...] of a float graph, of which tokens are whole."""
    shape = (count, *graph.tensors[graph.inputs[0]].shape[1:])
    if tokens := tokens_of(graph):
        return random.integers(tokens, size=shape).astype(np.float32)
    wide = random.uniform(-reach, reach, shape) + random.uniform(-reach, reach) / 2
    return wide.astype(np.float32)
