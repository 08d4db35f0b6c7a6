"""Take once what is taken twice: a crop behind a channel shuffle is one op."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedkit.graph import ir
from fedkit.graph.places import List, Places, places_of


@dataclass(frozen=True)
class Match:
    """What takes, and what alone takes of that."""

    first: ir.Op
    second: ir.Op


def match(graph: ir.Graph) -> Match | None:
    """Find two takes of which the second alone reads the first."""
    for op in graph.ops:
        before = graph.producer(op.inputs[0])
        if op.kind != "take" or before is None or before.kind != "take":
            continue
        if graph.sole_consumer(before.output) is op:
            return Match(before, op)
    return None


def transform(graph: ir.Graph, found: Match) -> ir.Graph:
    """Let the second take what it does of what the first reads."""
    first, second = (places_of(op).lists for op in (found.first, found.second))
    lists = [_of(*pair) for pair in zip(first, second, strict=True)]
    made = replace(found.second, inputs=found.first.inputs, attributes=Places(*lists))
    return graph.rewrite((found.first, found.second), (made,), ())


def _of(first: List, second: List) -> List:
    """Return which places of the whole are some places of what was taken."""
    if first is None or second is None:
        return second if first is None else first
    return tuple(first[place] for place in second)
