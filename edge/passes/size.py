"""What a float graph will ask of a device, once it is integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge.cost import cost
from fedkit.graph import ir
from fedkit.graph.ops.registry import WEIGHTED, spec_of


@dataclass(frozen=True)
class Size:
    """Counts of a graph.

    Attributes:
        ops: How many.
        parameters: Numbers in all constants.
        kept: Those that are not zero.
        int8_bytes: Of the constants, once integer: weights of one byte, biases and what norms have
            of four.
        macs: Multiply-accumulates of one example.
        kept_macs: Those by weights that are not zero.
    """

    ops: int
    parameters: int
    kept: int
    int8_bytes: int
    macs: int
    kept_macs: int


def size_of(graph: ir.Graph) -> Size:
    """Count what a graph has; constants that ops share count once."""
    widths: dict[str, int] = {}
    for op in graph.ops:
        for name in op.inputs:
            if graph.tensors[name].data is not None:
                is_bias = op.kind in WEIGHTED and name != op.inputs[1]
                width = 4 if is_bias or spec_of(op).wide_constants else 1
                widths[name] = max(widths.get(name, 1), width)
    data = {name: graph.constant(name) for name in widths}
    total = cost(graph)
    return Size(
        len(graph.ops),
        sum(each.size for each in data.values()),
        sum(int(np.count_nonzero(each)) for each in data.values()),
        sum(each.size * widths[name] for name, each in data.items()),
        total.macs,
        total.kept_macs,
    )
