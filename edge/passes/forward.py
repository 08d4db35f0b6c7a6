"""Let what scales and shifts the channels of a value go forward, into the layers that read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from edge.passes.affines import Floats, factors
from edge.passes.backward import MOVES, moved
from edge.passes.unread import constant
from fedkit.graph import ir
from fedkit.graph.ops.registry import CHANNEL_AXIS, WEIGHTED


@dataclass(frozen=True)
class LayerReader:
    """A layer that reads a value, and the moves between."""

    layer: ir.Op
    moves: tuple[ir.Op, ...] = ()


@dataclass(frozen=True, eq=False)
class ForwardFold:
    """A scale and shift of each channel of a value, and all the layers that can take them.

    Attributes:
        readers: Layers with weights.
        scale: float64 [channels] of the value.
        shift: As `scale`.
    """

    readers: tuple[LayerReader, ...]
    scale: Floats
    shift: Floats


def why_not(graph: ir.Graph, name: str, scale: Floats, shift: Floats) -> str | ForwardFold:
    """Return what is to be done, or why a scale and shift of a value cannot go forward."""
    if name in graph.guards:
        return f"a range guard watches {name!r}"
    found: list[LayerReader] = []
    for reader in _readers(graph, name, ()):
        if isinstance(reader, str):
            return reader
        if reason := _refused(graph, name, reader, scale, shift):
            return reason
        found.append(reader)
    return ForwardFold(tuple(found), scale, shift) if found else "nothing reads it"


def _readers(graph: ir.Graph, name: str, moves: tuple[ir.Op, ...]) -> Iterator[LayerReader | str]:
    if name in graph.outputs:
        yield f"{name!r} is an output of the model"
    for op in graph.ops:
        if name not in op.inputs:
            continue
        if op.kind in WEIGHTED and op.inputs[0] == name:
            yield LayerReader(op, moves)
        elif op.kind in MOVES:
            yield from _readers(graph, op.output, (*moves, op))
        else:
            yield f"{op.kind} of module {op.source!r} reads it, which is no linear layer"


def _refused(graph: ir.Graph, name: str, reader: LayerReader, scale: Floats, shift: Floats) -> str:
    layer, shape = reader.layer, graph.tensors[name].shape
    if layer.window is not None and any(layer.window.padding) and shift.any():
        return (
            f"layer {layer.source!r} pads with zeros, which would have to be another number at the "
            "border"
        )
    if any(_of_channels(graph, reader, shape, each) is None for each in (scale, shift)):
        return f"layer {layer.source!r} reads other channels at other places"
    if (other := shared_with(graph, layer)) is not None:
        return f"layer {layer.source!r} shares its weights with {other.source!r}"
    return ""


def shared_with(graph: ir.Graph, layer: ir.Op) -> ir.Op | None:
    """Return another layer, or table, with the same weights, which an artifact holds once."""
    own = graph.constant(layer.inputs[1])
    for op in graph.ops:
        if op.kind in (*WEIGHTED, "embedding") and op.output != layer.output:
            other = graph.constant(op.inputs[1])
            if own.size == other.size > 1 and np.array_equal(own.ravel(), other.ravel()):
                return op
    return None


def _of_channels(
    graph: ir.Graph, reader: LayerReader, shape: ir.Shape, values: Floats
) -> Floats | None:
    """Return values of the channels of what the reader reads; None if places differ."""
    whole = moved(graph, reader.moves, np.broadcast_to(values, shape))
    rows = whole.reshape(-1, whole.shape[-1])
    return None if (rows != rows[0]).any() else rows[0]


def folded(
    graph: ir.Graph, name: str, forward: ForwardFold
) -> tuple[dict[str, ir.Op], list[ir.Tensor]]:
    """Return the layers with a scale and shift of what they read within, and their constants.

    Args:
        graph: The graph.
        name: The value that they read, which is neither scaled nor shifted then.
        forward: What `why_not` gave.
    """
    changed: dict[str, ir.Op] = {}
    tensors: list[ir.Tensor] = []
    for reader in forward.readers:
        layer = reader.layer
        scale, shift = (
            _of_channels(graph, reader, graph.tensors[name].shape, each)
            for each in (forward.scale, forward.shift)
        )
        weight, bias = (graph.constant(each).astype(np.float64) for each in layer.inputs[1:])
        assert scale is not None and shift is not None  # `why_not` has looked
        axis = CHANNEL_AXIS[layer.kind]
        others = tuple(each for each in range(weight.ndim) if each != axis)
        scaled = weight * factors(graph, layer, scale)
        shifted = bias + (weight * factors(graph, layer, shift)).sum(others)
        made = (
            constant(graph, f"{layer.output}.weight_of_scaled", scaled),
            constant(graph, f"{layer.output}.bias_of_scaled", shifted),
        )
        inputs = (layer.inputs[0], *(each.name for each in made))
        changed[layer.output] = replace(layer, inputs=inputs)
        tensors += made
    return changed, tensors
