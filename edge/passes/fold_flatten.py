"""Permute the weights of a linear layer instead of the feature map it flattens.

Torch flattens [c, h, w]; the graph holds [h, w, c]. With the layer's columns in the graph's order,
the transposition is gone and a plain reshape is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedkit.graph import ir


@dataclass(frozen=True)
class Match:
    """A flatten in torch's order and the linear layer that alone reads it."""

    flatten: ir.Op
    linear: ir.Op


def match(graph: ir.Graph) -> Match | None:
    """Find a flatten in torch's order that only one linear layer reads."""
    for flatten in graph.ops:
        if flatten.kind == "flatten_nchw":
            linear = graph.sole_consumer(flatten.output)
            if linear and linear.kind == "linear":
                return Match(flatten, linear)
    return None


def transform(graph: ir.Graph, found: Match) -> ir.Graph:
    """Reorder the columns of the linear layer from (c, h, w) to (h, w, c)."""
    flatten, linear = found.flatten, found.linear
    _, h, w, c = graph.tensors[flatten.inputs[0]].shape
    columns = graph.constant(linear.inputs[1]).reshape(-1, c, h, w)
    data = np.ascontiguousarray(np.moveaxis(columns, 1, 3)).reshape(len(columns), -1)
    weight = ir.Tensor(f"{linear.output}.weight_hwc", data.shape, "float32", data)
    inputs = (linear.inputs[0], weight.name, linear.inputs[2])
    new = (replace(flatten, kind="reshape"), replace(linear, inputs=inputs))
    return graph.rewrite((flatten, linear), new, (weight,))
