"""What the channels of a graph are to each other.

A channel is a place on the last axis of an activation. Most ops compute a channel of their output
from one channel of each input: those go together, and `links` of `edge.ops` say which. Convolutions
and linear layers mix channels: there a weight that is not zero says who reads whom.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from edge.ops.integer_spec import Indices
from edge.ops.registry import spec_of
from fedkit.graph import ir
from fedkit.graph.ops.registry import CHANNEL_AXIS, SPECS, WEIGHTED

Flags = NDArray[np.bool_]

MIXING = frozenset(kind for kind, spec in SPECS.items() if spec.weights and spec.weights.mixes)
"""Ops whose output channels read all input channels, the last axis of their weights."""


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
        for link in spec_of(op).links(graph, op):
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
    for link in spec_of(op).links(graph, op):
        varies[link.outputs[~found[link.name][link.inputs]]] = True
    if op.kind in WEIGHTED:
        weight = graph.constant(op.inputs[1])
        varies &= np.moveaxis(weight, CHANNEL_AXIS[op.kind], 0).reshape(len(varies), -1).any(axis=1)
    return varies
