"""Fold what scales and shifts channels into the layers behind it, where none before can take it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edge.passes.affines import ScaleShift, affine_of
from edge.passes.forward import ForwardFold, folded, why_not
from edge.passes.rewrite import Hints, Place, Rewrite
from edge.passes.unread import reading, with_ops
from fedkit.graph import ir


@dataclass(frozen=True, eq=False)
class _Match:
    op: ir.Op
    affine: ScaleShift
    forward: ForwardFold


def _places(graph: ir.Graph, given: Hints) -> Iterator[Place]:
    for op in graph.ops:
        affine = affine_of(graph, op)
        if affine is None:
            continue
        where = op.source or op.output
        found = why_not(graph, op.output, affine.scale, affine.shift)
        if isinstance(found, str):
            yield Place(op.output, where, found)
        else:
            yield Place(op.output, where, found=_Match(op, affine, found))


def _transform(graph: ir.Graph, found: _Match) -> ir.Graph:
    name = found.op.output
    changed, tensors = folded(graph, name, found.forward)
    ops = [changed.get(op.output, op) for op in graph.ops if op.output != name]
    return with_ops(graph, [reading(op, name, found.affine.base) for op in ops], tensors)


REWRITE = Rewrite(
    "affine_forward",
    "what scales and shifts channels goes into the layers that read it",
    "convolutions and linear layers alone read it, none of which shares its weights, nor pads with "
    "zeros where there is a shift",
    exact=True,
    places=_places,
    transform=_transform,
)
