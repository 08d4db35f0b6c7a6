"""What the channels of a graph are to each other.

A channel is a place on the last axis of an activation. Most ops compute a channel of their output
from one channel of each input: those go together, and `links` says which. Convolutions and linear
layers mix channels: there a weight that is not zero says who reads whom.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fedkit.graph import ir

Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]

MIXING: frozenset[ir.Kind] = frozenset({"conv2d", "linear"})
"""Ops whose output channels read all input channels, the last axis of their weights."""


@dataclass(frozen=True)
class Link:
    """Channel `inputs[i]` of `name` is read by channel `outputs[i]` of an op's output."""

    name: str
    inputs: Indices
    outputs: Indices


def links(graph: ir.Graph, op: ir.Op) -> list[Link]:
    """Return which channels of its inputs the channels of an op's output stand for."""
    return _LINKS[op.kind](graph, op)


def reads(graph: ir.Graph, op: ir.Op) -> Flags:
    """Return [out, in]: whether an op of `MIXING` has a weight that is not zero there."""
    weight = graph.constant(op.inputs[1])
    return np.asarray((weight != 0).any(axis=tuple(range(1, weight.ndim - 1))))


def activations(graph: ir.Graph) -> list[ir.Tensor]:
    """Return the activations in the order in which they are known."""
    return [graph.tensors[name] for name in (*graph.inputs, *(op.output for op in graph.ops))]


def groups(graph: ir.Graph) -> dict[str, Indices]:
    """Return per activation the group of each channel: all of a group stay, or none."""
    tensors = activations(graph)
    ends = np.cumsum([tensor.shape[-1] for tensor in tensors])
    numbers = {
        tensor.name: np.arange(end - tensor.shape[-1], end)
        for tensor, end in zip(tensors, ends, strict=True)
    }
    pairs = [np.empty((2, 0), np.intp)]
    for op in graph.ops:
        for link in links(graph, op):
            pair = numbers[link.name][link.inputs], numbers[op.output][link.outputs]
            pairs.append(np.stack(pair))
    together = np.concatenate(pairs, axis=1)
    edges = coo_array((np.ones(together.shape[1]), tuple(together)), shape=(ends[-1], ends[-1]))
    _, labels = connected_components(edges, directed=False)
    return {name: np.asarray(labels[number], np.intp) for name, number in numbers.items()}


def known(graph: ir.Graph) -> dict[str, Flags]:
    """Return per activation which channels are the same whatever the input is.

    Their values may differ from place to place, as at the border of a padded convolution.
    """
    found = {name: np.zeros(graph.tensors[name].shape[-1], np.bool_) for name in graph.inputs}
    for op in graph.ops:
        found[op.output] = ~_varies(graph, op, found)
    return found


def _varies(graph: ir.Graph, op: ir.Op, found: Mapping[str, Flags]) -> Flags:
    if op.kind in MIXING:
        return np.asarray(reads(graph, op)[:, ~found[op.inputs[0]]].any(axis=1))
    varies = np.zeros(graph.tensors[op.output].shape[-1], np.bool_)
    for link in links(graph, op):
        varies[link.outputs[~found[link.name][link.inputs]]] = True
    if op.kind == "depthwise_conv2d":
        varies &= graph.constant(op.inputs[1]).any(axis=(0, 1, 2))
    return varies


def _none(graph: ir.Graph, op: ir.Op) -> list[Link]:
    return []


def _same(graph: ir.Graph, op: ir.Op) -> list[Link]:
    channels = np.arange(graph.tensors[op.output].shape[-1])
    return [Link(name, channels, channels) for name in op.inputs]


def _concat(graph: ir.Graph, op: ir.Op) -> list[Link]:
    sizes = [graph.tensors[name].shape[-1] for name in op.inputs]
    ends = np.cumsum(sizes)
    return [
        Link(name, np.arange(size), np.arange(end - size, end))
        for name, size, end in zip(op.inputs, sizes, ends, strict=True)
    ]


def _depthwise(graph: ir.Graph, op: ir.Op) -> list[Link]:
    outputs = np.arange(graph.tensors[op.output].shape[-1])
    multiplier = len(outputs) // graph.tensors[op.inputs[0]].shape[-1]
    return [Link(op.inputs[0], outputs // multiplier, outputs)]


def _reshape(graph: ir.Graph, op: ir.Op) -> list[Link]:
    return _elements(graph, op, lambda elements: elements)


def _flatten_nchw(graph: ir.Graph, op: ir.Op) -> list[Link]:
    return _elements(graph, op, lambda elements: np.moveaxis(elements, 3, 1))


def _elements(
    graph: ir.Graph, op: ir.Op, order: Callable[[NDArray[Any]], NDArray[Any]]
) -> list[Link]:
    """Link the channels that hold the same element."""
    x, out = (graph.tensors[name].shape for name in (op.inputs[0], op.output))
    elements = np.arange(math.prod(x))
    inputs = order((elements % x[-1]).reshape(x)).ravel()
    pairs = np.unique(np.stack([inputs, elements % out[-1]]), axis=1)
    return [Link(op.inputs[0], pairs[0], pairs[1])]


_LINKS: Mapping[ir.Kind, Callable[[ir.Graph, ir.Op], list[Link]]] = {
    **dict.fromkeys(MIXING, _none),
    **dict.fromkeys(("relu", "relu6", "add", "mean", "avg_pool2d", "max_pool2d", "pad"), _same),
    "concat": _concat,
    "depthwise_conv2d": _depthwise,
    "reshape": _reshape,
    "flatten_nchw": _flatten_nchw,
}
"""All kinds but `affine`, which is folded before a graph is quantised."""
