"""Let the op before a ReLU or ReLU6 apply it: on targets a clamp of the result, which is free."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedkit.graph import ir
from fedkit.graph.ops.registry import spec_of


@dataclass(frozen=True)
class Match:
    """An op and the ReLU that alone reads its result."""

    layer: ir.Op
    relu: ir.Op
    activation: ir.Activation


def match(graph: ir.Graph) -> Match | None:
    """Find a ReLU or ReLU6 behind an op that can apply it and has no activation yet."""
    for op in graph.ops:
        layer = graph.producer(op.inputs[0])
        own = spec_of(op).activation
        if own != "none" and layer and _can_apply(graph, layer):
            return Match(layer, op, own)
    return None


def _can_apply(graph: ir.Graph, layer: ir.Op) -> bool:
    is_free = spec_of(layer).fuses_activation and layer.activation == "none"
    return is_free and graph.sole_consumer(layer.output) is not None


def transform(graph: ir.Graph, found: Match) -> ir.Graph:
    """Let the op write the ReLU's output."""
    fused = replace(found.layer, outputs=found.relu.outputs, activation=found.activation)
    return graph.rewrite((found.layer, found.relu), (fused,), ())
