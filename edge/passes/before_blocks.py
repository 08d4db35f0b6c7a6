"""Let a BatchNorm or ReLU go before the blocks of pixels that channels become, and their cut.

There it meets the convolution that it can join, as that of a transposed convolution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedkit.graph import ir
from fedkit.graph.ops.registry import spec_of
from fedkit.graph.pixel_blocks import blocks_of
from fedkit.graph.places import places_of


@dataclass(frozen=True)
class Match:
    """What moves values, and an op on each of them that alone reads the result."""

    mover: ir.Op
    follower: ir.Op


def match(graph: ir.Graph) -> Match | None:
    """Find a BatchNorm or ReLU right behind what puts channels elsewhere, or behind its cut."""
    for op in graph.ops:
        mover = graph.producer(op.inputs[0])
        is_of_each = op.kind == "affine" or spec_of(op).activation != "none"
        if is_of_each and mover and _moves(graph, mover):
            return Match(mover, op)
    return None


def _moves(graph: ir.Graph, mover: ir.Op) -> bool:
    if graph.sole_consumer(mover.output) is None:
        return False
    if mover.kind == "take" and places_of(mover).channels is None:
        before = graph.producer(mover.inputs[0])
        return before is not None and before.kind == "depth_to_space" and _moves(graph, before)
    return mover.kind == "depth_to_space"


def transform(graph: ir.Graph, found: Match) -> ir.Graph:
    """Let the op read what the mover reads, and the mover what the op writes."""
    mover, follower = found.mover, found.follower
    x = graph.tensors[mover.inputs[0]]
    name = ir.unused_name(f"{follower.output}.before", graph.tensors)
    constants = [_per_channel(graph, mover, name, each) for each in follower.inputs[1:]]
    inputs = (x.name, *(constant.name for constant in constants))
    new = replace(follower, inputs=inputs, outputs=(name,))
    moved = replace(mover, inputs=(name,), outputs=follower.outputs)
    added = (ir.Tensor(name, x.shape), *constants)
    return graph.rewrite((mover, follower), (new, moved), added)


def _per_channel(graph: ir.Graph, mover: ir.Op, name: str, constant: str) -> ir.Tensor:
    """Return a constant with a value for each channel that the mover reads."""
    values = graph.constant(constant)
    if mover.kind == "depth_to_space":
        blocks = blocks_of(mover)
        repeated = np.repeat if blocks.by_channel else np.tile
        values = repeated(values, blocks.pixels)
    own = ir.unused_name(f"{name}.{constant}", graph.tensors)
    return ir.Tensor(own, values.shape, "float32", values)
