"""What a graph asks for: channels, parameters and multiplications, counted on its constants."""

from __future__ import annotations

from dataclasses import astuple

from edge.ops.integer_spec import Cost as Cost
from edge.ops.integer_spec import cost_of_weights
from edge.ops.registry import SPECS
from fedkit.graph import ir


def cost(graph: ir.Graph) -> Cost:
    """Count what the weighted ops of a float or int8 graph ask for."""
    counts = [astuple(op_cost(graph, op)) for op in graph.ops]
    return Cost(*(sum(column) for column in zip(*counts, strict=True)))


def op_cost(graph: ir.Graph, op: ir.Op) -> Cost:
    """Count what one op asks for; nothing if it has no weights."""
    return (SPECS[op.kind].cost if op.kind in SPECS else cost_of_weights)(graph, op)
