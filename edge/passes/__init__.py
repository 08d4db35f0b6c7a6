"""Rewrites of graphs, one per file.

Of the float graph: `match` finds a place, `transform` changes it; `optimise` applies them all. Of
the int8 graph, after quantisation: `edge.passes.slim`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from edge.passes import (
    affine_to_depthwise,
    before_blocks,
    fold_bn,
    fold_flatten,
    fuse_relu,
    merge_constants,
    merge_takes,
    name_functions,
    scales_first,
    split_layers,
    sum_to_depthwise,
)
from fedkit.graph import ir
from fedkit.graph.late_moves import move_late
from fedkit.graph.verify import verify

Match = TypeVar("Match")


def optimise(graph: ir.Graph) -> ir.Graph:
    """Apply every pass until none finds a place, and verify after each.

    Raises:
        ExportError: A BatchNorm is left that no target can compute, or a pass broke a rule.
    """
    graph = move_late(graph)
    verify(graph)
    graph = _exhaust(graph, name_functions.match, name_functions.transform)
    graph = _exhaust(graph, before_blocks.match, before_blocks.transform)
    graph = _exhaust(graph, merge_constants.match, merge_constants.transform)
    graph = _exhaust(graph, split_layers.match, split_layers.transform)
    graph = _exhaust(graph, scales_first.match, scales_first.transform)
    graph = _exhaust(graph, fold_bn.match, fold_bn.transform)
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
