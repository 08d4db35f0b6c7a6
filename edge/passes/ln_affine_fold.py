"""Fold weight and bias of a norm over the channels into the layers that read it.

Its result then has channels of one size, which int8 likes; but a weight that differs much between
channels makes the rows of the layers uneven, which share one scale each. So by how much the error
of int8 weights would grow is worked out first, see `growth`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from edge.passes.affines import Floats, factors
from edge.passes.forward import ForwardFold, folded, why_not
from edge.passes.rewrite import Hints, Place, Rewrite
from edge.passes.unread import constant, with_changed
from fedkit.graph import ir
from fedkit.graph.ops.registry import CHANNEL_AXIS

MOST_GROWTH = 1.5
"""Of the error that rounding a layer's weights to int8 makes in its result."""

_NORMS = ("channel_norm", "group_norm")


@dataclass(frozen=True, eq=False)
class _Match:
    norm: ir.Op
    forward: ForwardFold


def _places(graph: ir.Graph, given: Hints) -> Iterator[Place]:
    for op in graph.ops:
        if op.kind not in _NORMS:
            continue
        scale, shift = (graph.constant(name).astype(np.float64) for name in op.inputs[1:])
        if (scale == 1).all() and not shift.any():
            continue
        where = op.source or op.output
        if op.activation != "none":
            yield Place(op.output, where, f"the norm applies {op.activation} to its result")
            continue
        found = why_not(graph, op.output, scale, shift)
        if not isinstance(found, str) and (reason := _too_uneven(graph, found)):
            found = reason
        if isinstance(found, str):
            yield Place(op.output, where, found)
        else:
            yield Place(op.output, where, found=_Match(op, found))


def _too_uneven(graph: ir.Graph, forward: ForwardFold) -> str:
    for reader in forward.readers:
        if reader.moves:
            continue
        grown = growth(graph, reader.layer, forward.scale)
        if grown > MOST_GROWTH:
            return (
                f"its weights differ so much that int8 weights of layer {reader.layer.source!r} "
                f"would err {grown:.2f} times as much (at most {MOST_GROWTH} may be)"
            )
    return ""


def growth(graph: ir.Graph, layer: ir.Op, scale: Floats) -> float:
    """Return by how much the error of a layer's result grows that int8 weights make.

    A row's step is its largest weight over 127; what rounding makes of a result is a step's error,
    for each channel times its size: that of `scale` before, 1 then.

    Args:
        graph: The graph.
        layer: It reads channels that a norm made of one size, times `scale`.
        scale: float64 [channels].
    """
    weight = np.abs(graph.constant(layer.inputs[1]).astype(np.float64))
    axis = CHANNEL_AXIS[layer.kind]
    others = tuple(each for each in range(weight.ndim) if each != axis)
    size = np.abs(np.broadcast_to(factors(graph, layer, scale), weight.shape))
    before = weight.max(others) * np.sqrt((size**2).mean(others))
    after = (weight * size).max(others)
    total = float(np.sqrt((before**2).sum()))
    return float(np.sqrt((after**2).sum())) / total if total else 1.0


def _transform(graph: ir.Graph, found: _Match) -> ir.Graph:
    norm = found.norm
    changed, tensors = folded(graph, norm.output, found.forward)
    channels = graph.tensors[norm.output].shape[-1]
    made = [
        constant(graph, f"{norm.output}.{what}", values)
        for what, values in (("ones", np.ones(channels)), ("zeros", np.zeros(channels)))
    ]
    inputs = (norm.inputs[0], *(each.name for each in made))
    changed[norm.output] = replace(norm, inputs=inputs)
    return with_changed(graph, changed, [*tensors, *made])


REWRITE = Rewrite(
    "ln_affine_fold",
    "weight and bias of a layer or RMS norm go into the layers that read it",
    "as for affine_forward; and the error of int8 weights grows by half at most",
    exact=True,
    places=_places,
    transform=_transform,
    opt_in=True,
    caution="weights of a norm that differ much between channels make int8 weights err more",
)
