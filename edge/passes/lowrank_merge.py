"""Merge two layers with nothing between them into one, where that is not larger."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from edge.passes.affines import Floats
from edge.passes.forward import shared_with
from edge.passes.rewrite import Hints, Place, Rewrite
from edge.passes.unread import constant, with_changed
from fedkit.graph import ir

_LAYERS = ("conv2d", "linear")


@dataclass(frozen=True, eq=False)
class _Merged:
    """A layer that computes what two did.

    Attributes:
        op: The second, without its constants.
        weight: float64, of its shape.
        bias: float64 [out].
    """

    op: ir.Op
    weight: Floats
    bias: Floats


def _places(graph: ir.Graph, given: Hints) -> Iterator[Place]:
    for first in graph.ops:
        readers = [op for op in graph.ops if first.output in op.inputs]
        if first.kind not in _LAYERS or not any(op.kind in _LAYERS for op in readers):
            continue
        where = first.source or first.output
        why_not = _why_not(graph, first, readers)
        if why_not:
            yield Place(first.output, where, why_not)
            continue
        merged = [_merged(graph, first, op) for op in readers]
        yield Place(first.output, where, _cost(graph, first, readers, merged), merged)


def _why_not(graph: ir.Graph, first: ir.Op, readers: list[ir.Op]) -> str:
    if first.activation != "none":
        return f"it applies {first.activation} to its result"
    if first.output in graph.outputs:
        return f"{first.output!r} is an output of the model"
    if first.output in graph.guards:
        return f"a range guard watches {first.output!r}"
    for each in (first, *readers):
        if each.kind not in _LAYERS:
            return f"{each.kind} of module {each.source!r} reads it too"
        if (other := shared_with(graph, each)) is not None:
            return f"layer {each.source!r} shares its weights with {other.source!r}"
    for op in readers:
        if reason := _not_one(graph, first, op):
            return reason
    return ""


def _not_one(graph: ir.Graph, first: ir.Op, second: ir.Op) -> str:
    """Return why two layers are not one convolution."""
    if second.window is None or second.window.kernel == (1, 1):
        pads = second.window is not None and any(second.window.padding)
        return f"layer {second.source!r} pads what it writes" if pads else ""
    assert first.window is not None  # it writes a map
    if first.window != ir.Window():
        return f"both have windows, it and layer {second.source!r}"
    if any(second.window.padding) and graph.constant(first.inputs[2]).any():
        return f"layer {second.source!r} pads what it writes with zeros, not with its biases"
    return ""


def _merged(graph: ir.Graph, first: ir.Op, second: ir.Op) -> _Merged:
    inner, offset = (graph.constant(name).astype(np.float64) for name in first.inputs[1:])
    outer, bias = (graph.constant(name).astype(np.float64) for name in second.inputs[1:])
    taps = tuple(range(1, outer.ndim - 1))
    bias = bias + outer.sum(taps) @ offset
    if second.window is None or first.window is None:
        return _Merged(replace(second, inputs=first.inputs[:1]), outer @ inner, bias)
    if second.window.kernel == (1, 1):
        weight = np.tensordot(outer[:, 0, 0], inner, (1, 0))
        own, then = first.window, second.window.stride
        stride = (own.stride[0] * then[0], own.stride[1] * then[1])
        window = replace(own, stride=stride)
    else:
        weight, window = outer @ inner[:, 0, 0], second.window
    return _Merged(replace(second, inputs=first.inputs[:1], window=window), weight, bias)


def _cost(graph: ir.Graph, first: ir.Op, readers: list[ir.Op], merged: list[_Merged]) -> str:
    """Return why one layer would be larger than two, if it would."""

    def pixels(op: ir.Op) -> int:
        return math.prod(graph.tensors[op.output].shape[1:-1])

    def kept(op: ir.Op) -> int:
        return int(np.count_nonzero(graph.constant(op.inputs[1])))

    before = [(kept(op), kept(op) * pixels(op)) for op in (first, *readers)]
    after = [
        (int(np.count_nonzero(each.weight.astype(np.float32))), pixels(op))
        for op, each in zip(readers, merged, strict=True)
    ]
    weights = sum(each[0] for each in before), sum(each[0] for each in after)
    macs = sum(each[1] for each in before), sum(count * size for count, size in after)
    for what, (was, will) in (("weights", weights), ("multiplications", macs)):
        if will > was:
            return f"it and what reads it have {was:,} {what} that are not zero; merged {will:,}"
    return ""


def _transform(graph: ir.Graph, found: list[_Merged]) -> ir.Graph:
    changed: dict[str, ir.Op] = {}
    tensors: list[ir.Tensor] = []
    for each in found:
        name = each.op.output
        made = (
            constant(graph, f"{name}.weight_merged", each.weight),
            constant(graph, f"{name}.bias_merged", each.bias),
        )
        inputs = (*each.op.inputs, *(tensor.name for tensor in made))
        changed[name] = replace(each.op, inputs=inputs)
        tensors += made
    return with_changed(graph, changed, tensors)


REWRITE = Rewrite(
    "lowrank_merge",
    "two layers with nothing between them become one",
    "layers alone read the first; one of two has a window, and no zeros are between; weights and "
    "multiplications, counted without zeros, do not grow",
    exact=True,
    places=_places,
    transform=_transform,
)
