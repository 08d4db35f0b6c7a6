"""Add once what is added twice: the place of a token, and the token of a class."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedkit.graph import ir


@dataclass(frozen=True)
class Match:
    """Two sums with constants, of which the second alone reads the first."""

    first: ir.Op
    second: ir.Op


def match(graph: ir.Graph) -> Match | None:
    """Find two sums with constants, one right behind the other."""
    for op in graph.ops:
        before = graph.producer(_value(graph, op)) if _is_sum(graph, op) else None
        if before is None or not _is_sum(graph, before):
            continue
        if graph.sole_consumer(before.output) is op:
            return Match(before, op)
    return None


def _is_sum(graph: ir.Graph, op: ir.Op) -> bool:
    has_constant = any(graph.tensors[name].data is not None for name in op.inputs)
    return op.kind == "add" and op.activation == "none" and has_constant


def _value(graph: ir.Graph, op: ir.Op) -> str:
    return next(name for name in op.inputs if graph.tensors[name].data is None)


def _constant(graph: ir.Graph, op: ir.Op) -> ir.Array:
    return next(graph.constant(name) for name in op.inputs if name != _value(graph, op))


def transform(graph: ir.Graph, found: Match) -> ir.Graph:
    """Add both constants to what the first reads."""
    data = _constant(graph, found.first) + _constant(graph, found.second)
    name = ir.unused_name(f"{found.second.output}.both", graph.tensors)
    both = ir.Tensor(name, data.shape, "float32", data)
    made = replace(found.second, inputs=(_value(graph, found.first), name))
    return graph.rewrite((found.first, found.second), (made,), (both,))
