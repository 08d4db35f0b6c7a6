"""Let what scales and shifts a value go back through moves, into the layer that writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge.passes.affines import Floats, ScaleShift
from edge.passes.unread import constant, with_changed
from fedkit.graph import ir
from fedkit.graph.ops.registry import CHANNEL_AXIS, WEIGHTED, spec_of

MOVES = ("transpose", "reshape", "flatten_nchw", "take", "depth_to_space")
"""Kinds that compute nothing: each value of their results is one of what they read."""


@dataclass(frozen=True)
class LayerChain:
    """A layer, and the moves that its result goes through, each the only one that reads it."""

    layer: ir.Op
    moves: tuple[ir.Op, ...]


def chain_to(graph: ir.Graph, name: str) -> LayerChain | str:
    """Return the layer that a value comes from, or why there is none."""
    moves: list[ir.Op] = []
    while (op := graph.producer(name)) is not None and graph.sole_consumer(name) is not None:
        if op.kind in WEIGHTED:
            applies = f"layer {op.source!r} applies {op.activation} to its result"
            return applies if op.activation != "none" else LayerChain(op, tuple(moves[::-1]))
        if op.kind not in MOVES:
            return f"{op.kind} of module {op.source!r} writes it, not a convolution or linear layer"
        moves.append(op)
        name = op.inputs[0]
    if op is None:
        return f"it is the input {name!r} of the model"
    return f"what module {op.source!r} writes is read elsewhere too"


def moved(graph: ir.Graph, moves: Sequence[ir.Op], values: ir.Array) -> ir.Array:
    """Return values [1, ...] as moves put them."""
    for move in moves:
        values = np.asarray(spec_of(move).real(move, graph, values))
    return values


def of_channels(graph: ir.Graph, chain: LayerChain, affine: ScaleShift) -> ScaleShift | None:
    """Return what is done with each channel of a layer; None if places of one differ.

    Args:
        graph: The graph.
        chain: The layer, and the moves to `affine.base`.
        affine: For each element of its base.
    """
    shape = graph.tensors[chain.layer.output].shape
    numbers = np.broadcast_to(np.arange(shape[-1], dtype=np.float32), shape)
    channels = moved(graph, chain.moves, numbers).astype(np.intp).ravel()
    found = [_one_each(each.ravel(), channels, shape[-1]) for each in (affine.scale, affine.shift)]
    scale, shift = found
    if scale is None or shift is None:
        return None
    return ScaleShift(chain.layer.output, scale, shift)


def _one_each(values: Floats, channels: ir.Array, count: int) -> Floats | None:
    """Return the value of each channel; what is taken of no channel is left as 0."""
    found = np.zeros(count)
    found[channels] = values
    return found if (found[channels] == values).all() else None


def folded(graph: ir.Graph, chain: LayerChain, op: ir.Op, affine: ScaleShift) -> ir.Graph:
    """Return a graph whose layer computes what an op behind it does; the last move writes it.

    Args:
        graph: The graph.
        chain: The layer, and the moves to the op.
        op: What scales and shifts; it goes.
        affine: The same, for each channel of the layer.
    """
    layer = chain.layer
    weight, bias = (graph.constant(name).astype(np.float64) for name in layer.inputs[1:])
    scale = ir.along(CHANNEL_AXIS[layer.kind], affine.scale, weight.ndim)
    made = (
        constant(graph, f"{op.output}.weight", weight * scale),
        constant(graph, f"{op.output}.bias", bias * affine.scale + affine.shift),
    )
    ops = [replace(layer, inputs=(layer.inputs[0], *(each.name for each in made))), *chain.moves]
    ops[-1] = replace(ops[-1], outputs=op.outputs)
    before = {**{each.output: each for each in ops[:-1]}, op.output: ops[-1]}
    return with_changed(graph, before, made)
