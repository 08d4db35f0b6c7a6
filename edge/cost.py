"""What a graph asks for: channels, parameters and multiplications, counted on its constants."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import numpy as np

from fedkit.graph import ir
from fedkit.graph.ops.registry import WEIGHTED


@dataclass(frozen=True)
class Cost:
    """Counts for one example.

    Attributes:
        channels: Outputs of all weighted ops: filters and rows.
        parameters: Weights and biases, zeros included.
        macs: Multiply-accumulates, zeros and padding included.
        kept_weights: Weights that are not zero.
        kept_macs: Multiply-accumulates of those, padding included.
    """

    channels: int
    parameters: int
    macs: int
    kept_weights: int
    kept_macs: int


def cost(graph: ir.Graph) -> Cost:
    """Count what the weighted ops of a float or int8 graph ask for."""
    counts = [astuple(op_cost(graph, op)) for op in graph.ops]
    return Cost(*(sum(column) for column in zip(*counts, strict=True)))


def op_cost(graph: ir.Graph, op: ir.Op) -> Cost:
    """Count what one op asks for; nothing if it has no weights."""
    if op.kind not in WEIGHTED:
        return Cost(0, 0, 0, 0, 0)
    weight, bias = (graph.constant(name) for name in op.inputs[1:])
    # Every weight meets each pixel of the output once.
    kept, uses = np.count_nonzero(weight), math.prod(graph.tensors[op.output].shape[1:-1])
    return Cost(len(bias), weight.size + len(bias), weight.size * uses, kept, kept * uses)
