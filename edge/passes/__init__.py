"""Rewrites of graphs, one per file.

Of the float graph: `match` finds a place, `transform` changes it; `optimise` applies them all. Some
more are applied where they are asked for: `edge.passes.rewrites` has them by name. Of the int8
graph, after quantisation: `edge.passes.slim`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from edge.passes import (
    affine_to_depthwise,
    before_blocks,
    fold_bn,
    fold_flatten,
    fuse_relu,
    merge_affines,
    merge_constants,
    merge_takes,
    name_functions,
    scales_first,
    split_layers,
    sum_to_depthwise,
)
from edge.passes.ln_freeze import watched
from edge.passes.rewrite import Done, Hints, apply
from edge.passes.rewrites import asked
from edge.passes.size import Size, size_of
from fedkit.graph import ir
from fedkit.graph.late_moves import move_late
from fedkit.graph.verify import verify

Match = TypeVar("Match")


def optimise(graph: ir.Graph) -> ir.Graph:
    """Apply every pass until none finds a place, and verify after each.

    Raises:
        ExportError: A BatchNorm is left that no target can compute, or a pass broke a rule.
    """
    return _finished(_folded(_prepared(graph)))


@dataclass(frozen=True, eq=False)
class Rewritten:
    """A float graph, and what rewrites did to it.

    Attributes:
        graph: Optimised.
        done: What became of each rewrite, in order.
        sizes: Of the graph before the first, and after each.
    """

    graph: ir.Graph
    done: tuple[Done, ...]
    sizes: tuple[Size, ...]


def rewritten(graph: ir.Graph, names: Sequence[str], given: Hints | None = None) -> Rewritten:
    """Apply rewrites by name, beside all that `optimise` does.

    Args:
        graph: Float, as a reader made it.
        names: Of `edge.passes.rewrites.REWRITES`, in any order; "exact" stands for several.
        given: What is known beside the graph.

    Raises:
        ExportError: There is no rewrite of a name; or as for `optimise`.
    """
    rows, given = asked(names), given or Hints()
    graph, done = _prepared(graph), []
    sizes = [size_of(_finished(graph))]
    for row in rows:
        graph, became = apply(graph, row, given)
        done.append(became)
        sizes.append(size_of(_finished(graph)))
    return Rewritten(_finished(_folded(graph)), tuple(done), tuple(sizes))


def _prepared(graph: ir.Graph) -> ir.Graph:
    """Bring what readers made into the form that rewrites look for."""
    graph = move_late(graph)
    verify(graph)
    graph = _exhaust(graph, name_functions.match, name_functions.transform)
    graph = _exhaust(graph, before_blocks.match, before_blocks.transform)
    graph = _exhaust(graph, merge_constants.match, merge_constants.transform)
    graph = _exhaust(graph, split_layers.match, split_layers.transform)
    return watched(_exhaust(graph, scales_first.match, scales_first.transform))


def _folded(graph: ir.Graph) -> ir.Graph:
    graph = _exhaust(graph, merge_affines.match, merge_affines.transform)
    return _exhaust(graph, fold_bn.match, fold_bn.transform)


def _finished(graph: ir.Graph) -> ir.Graph:
    """Bring a graph into the form that targets take."""
    graph = _exhaust(graph, affine_to_depthwise.match, affine_to_depthwise.transform)
    graph = _exhaust(graph, merge_takes.match, merge_takes.transform)
    graph = _exhaust(graph, sum_to_depthwise.match, sum_to_depthwise.transform)
    graph = _exhaust(graph, fuse_relu.match, fuse_relu.transform)
    return _exhaust(graph, fold_flatten.match, fold_flatten.transform)


def _exhaust(
    graph: ir.Graph,
    match: Callable[[ir.Graph], Match | None],
    transform: Callable[[ir.Graph, Match], ir.Graph],
) -> ir.Graph:
    while (found := match(graph)) is not None:
        graph = transform(graph, found)
    verify(graph)
    return graph
