"""Fold the factor of a residual branch, x + a F(x), into the layer that F ends in.

So SkipInit, ScaledResidual and LayerScale cost nothing. Where nothing lies between the layer and
the factor, `fold_bn` has done it; this one goes back through what moves values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edge.passes.affines import ScaleShift, scaling_of
from edge.passes.backward import MOVES, LayerChain, chain_to, folded, of_channels
from edge.passes.rewrite import Hints, Place, Rewrite
from fedkit.graph import ir


@dataclass(frozen=True, eq=False)
class _Match:
    chain: LayerChain
    op: ir.Op
    affine: ScaleShift


def _places(graph: ir.Graph, given: Hints) -> Iterator[Place]:
    for op in graph.ops:
        scaling = scaling_of(graph, op)
        if scaling is not None and _is_added(graph, op):
            yield _place(graph, op, scaling)


def _is_added(graph: ir.Graph, op: ir.Op) -> bool:
    """Whether only a sum with another activation reads a value, moved or not."""
    reader = graph.sole_consumer(op.output)
    while reader is not None and reader.kind in MOVES:
        reader = graph.sole_consumer(reader.output)
    if reader is None or reader.kind not in ("add", "sub"):
        return False
    return all(graph.tensors[name].data is None for name in reader.inputs)


def _place(graph: ir.Graph, op: ir.Op, scaling: ScaleShift) -> Place:
    where = op.source or op.output
    chain = chain_to(graph, scaling.base)
    if isinstance(chain, str):
        return Place(op.output, where, chain)
    affine = of_channels(graph, chain, scaling)
    if affine is None:
        why_not = f"it scales places of one channel of layer {chain.layer.source!r} otherwise"
        return Place(op.output, where, why_not)
    return Place(op.output, where, found=_Match(chain, op, affine))


def _transform(graph: ir.Graph, found: _Match) -> ir.Graph:
    return folded(graph, found.chain, found.op, found.affine)


REWRITE = Rewrite(
    "residual_scale_fold",
    "the factor of a residual branch goes back through moves into the layer that ends the branch",
    "a convolution or linear layer without ReLU ends the branch, nothing else reads it, and places "
    "of one of its channels are scaled alike",
    exact=True,
    places=_places,
    transform=_transform,
)
