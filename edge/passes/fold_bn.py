"""Fold a BatchNorm into the convolution, linear layer or other norm before it.

So it is with all that scales and shifts each channel, whatever the model calls it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edge.passes.affines import ScaleShift, affine_of
from fedkit.graph import ir
from fedkit.graph.ops.registry import CHANNEL_AXIS, WEIGHTED


@dataclass(frozen=True)
class Match:
    """A weighted op, or a norm, and the affine op that alone reads its result."""

    layer: ir.Op
    norm: ir.Op
    affine: ScaleShift


def match(graph: ir.Graph) -> Match | None:
    """Find an affine op whose input comes from a linear op and goes nowhere else."""
    for norm in graph.ops:
        affine = affine_of(graph, norm)
        layer = affine and graph.producer(affine.base)
        if affine and layer and _can_absorb(graph, layer):
            return Match(layer, norm, affine)
    return None


def _can_absorb(graph: ir.Graph, layer: ir.Op) -> bool:
    is_linear = (
        layer.kind in (*WEIGHTED, "affine", "group_norm", "channel_norm")
        and layer.activation == "none"
    )
    return is_linear and graph.sole_consumer(layer.output) is not None


def transform(graph: ir.Graph, found: Match) -> ir.Graph:
    """Scale the weights per output channel in float64 and let the layer write the norm's output."""
    layer, norm, affine = found.layer, found.norm, found.affine
    weight, bias = (graph.constant(name).astype(np.float64) for name in layer.inputs[1:])
    axis = CHANNEL_AXIS.get(layer.kind, 0)
    folded = (
        _constant(f"{norm.output}.weight", weight * ir.along(axis, affine.scale, weight.ndim)),
        _constant(f"{norm.output}.bias", bias * affine.scale + affine.shift),
    )
    inputs = (layer.inputs[0], *(tensor.name for tensor in folded))
    return graph.rewrite(
        (layer, norm), (replace(layer, inputs=inputs, outputs=norm.outputs),), folded
    )


def _constant(name: str, value: ir.Array) -> ir.Tensor:
    return ir.Tensor(name, value.shape, "float32", value.astype(np.float32))
