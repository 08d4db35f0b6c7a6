"""Let a sum of scaled values of one activation be one scale and shift of it.

So is RepBN, BatchNorm(x) + eta x, and it folds as a BatchNorm does.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.passes.affines import ScaleShift, root_of
from edge.passes.unread import constant, with_changed
from fedkit.graph import ir


@dataclass(frozen=True)
class Match:
    """A sum or difference, and what it is."""

    op: ir.Op
    affine: ScaleShift


def match(graph: ir.Graph) -> Match | None:
    """Find a sum or difference of two affine ops of one activation, which may be one itself."""
    for op in graph.ops:
        if op.kind in ("add", "sub") and op.activation == "none" and _is_of_two(graph, op):
            left, right = (root_of(graph, name) for name in op.inputs)
            if left.base == right.base:
                sign = 1 if op.kind == "add" else -1
                scale, shift = left.scale + sign * right.scale, left.shift + sign * right.shift
                return Match(op, ScaleShift(left.base, scale, shift))
    return None


def _is_of_two(graph: ir.Graph, op: ir.Op) -> bool:
    tensors = [graph.tensors[name] for name in (*op.inputs, op.output)]
    is_plain = all(each.data is None for each in tensors)
    return is_plain and len({each.shape for each in tensors}) == 1


def transform(graph: ir.Graph, found: Match) -> ir.Graph:
    """Put an affine op in the place of the sum; what else reads its parts keeps them."""
    name = found.op.output
    scale = constant(graph, f"{name}.scale", found.affine.scale)
    shift = constant(graph, f"{name}.shift", found.affine.shift)
    inputs = (found.affine.base, scale.name, shift.name)
    made = ir.Op("affine", inputs, found.op.outputs, source=found.op.source)
    return with_changed(graph, {name: made}, (scale, shift))
