"""What a graph asks for: channels, parameters and multiplications, counted on its constants."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edge import ir


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
    counts = np.zeros(5, np.int64)
    for op in graph.ops:
        if op.kind in ir.WEIGHTED:
            weight, bias = (graph.constant(name) for name in op.inputs[1:])
            kept, uses = np.count_nonzero(weight), math.prod(graph.tensors[op.output].shape[1:-1])
            size = weight.size
            counts += [len(bias), size + len(bias), size * uses, kept, kept * uses]
    return Cost(*counts.tolist())
