"""Let a layer of which parts are taken be a layer for each part, as for queries, keys and values.

Each part has a range of its own then, and nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedkit.graph import ir
from fedkit.graph.places import Places, places_of

_LAYERS = ("conv2d", "linear")


@dataclass(frozen=True)
class Match:
    """A layer, and all that reads it: ops that take some of its channels."""

    layer: ir.Op
    takes: tuple[ir.Op, ...]


def match(graph: ir.Graph) -> Match | None:
    """Find a layer of which only channels are taken, none of them twice."""
    for layer in graph.ops:
        readers = tuple(op for op in graph.ops if layer.output in op.inputs)
        is_plain = layer.kind in _LAYERS and layer.activation == "none"
        if not is_plain or len(readers) < 2 or layer.output in graph.outputs:
            continue
        taken = [channel for op in readers for channel in _channels(op)]
        if all(map(_channels, readers)) and len(taken) == len(set(taken)):
            return Match(layer, readers)
    return None


def _channels(op: ir.Op) -> tuple[int, ...]:
    """Return the channels that an op takes, if it does nothing else."""
    if op.kind != "take":
        return ()
    places = places_of(op)
    return places.channels or () if places == Places(channels=places.channels) else ()


def transform(graph: ir.Graph, found: Match) -> ir.Graph:
    """Put the layer with the rows of its weights that are taken in the place of each take."""
    layer = found.layer
    weight, bias = (graph.constant(name) for name in layer.inputs[1:])
    for take in found.takes:
        rows = np.array(_channels(take))
        names = [
            ir.unused_name(f"{take.output}.{what}", graph.tensors) for what in ("weight", "bias")
        ]
        parts = [
            ir.Tensor(name, each[rows].shape, "float32", np.ascontiguousarray(each[rows]))
            for name, each in zip(names, (weight, bias), strict=True)
        ]
        part = replace(layer, inputs=(layer.inputs[0], *names), outputs=take.outputs)
        graph = graph.rewrite((take,), (part,), parts)
    left = tuple(op for op in graph.ops if op is not layer)
    kept = {*graph.inputs}.union(*((*op.inputs, *op.outputs) for op in left))
    tensors = {name: each for name, each in graph.tensors.items() if name in kept}
    return replace(graph, ops=left, tensors=tensors)
