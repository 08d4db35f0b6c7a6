"""Hold a residual stream that has no mean over its channels in one channel less.

Its values lie in a space of one dimension less. The paper (Jiang et al., 2023) leaves a channel out
and lets the norm compute it; here the stream gets an orthonormal basis of that space, the first
columns of a reflection. Lengths stay, so an RMS norm over the channels that are left is the norm,
but for its factor and eps; no kernel needs to know of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from edge.passes.rewrite import Hints, Place, Rewrite
from edge.passes.stream import MIXING, TABLE, Stream, named, norm_of, projected, streams
from edge.passes.unread import constant, with_changed
from fedkit.graph import ir

_FEWEST = 3
"""Channels of a stream: of two, one would be left, whose RMS norm is its sign."""

_NO_MEAN = 1e-5
"""Of the weights that write a stream: a mean over its channels below this is none."""


@dataclass(frozen=True, eq=False)
class _Match:
    stream: Stream
    basis: ir.Array


def _places(graph: ir.Graph, given: Hints) -> Iterator[Place]:
    for stream in streams(graph):
        basis = _basis(stream.channels) if stream.channels > 1 else np.ones((1, 1))
        why_not = _why_not(graph, stream, basis)
        yield Place(stream.norms[0].output, named(stream), why_not, _Match(stream, basis))


def _why_not(graph: ir.Graph, stream: Stream, basis: ir.Array) -> str:
    if stream.problems:
        return stream.problems[0]
    if stream.channels < _FEWEST:
        return f"the stream has {stream.channels} channel(s), of which none can go"
    if watched := stream.values & {*graph.guards}:
        return f"a range guard watches {min(watched)!r}, which is of the stream"
    for op in stream.norms:
        if op.activation != "none" or op.output in graph.outputs:
            return f"what the norm {op.source!r} gives is an output, or goes through a ReLU"
        if not norm_of(op).centred and (writer := _with_mean(graph, stream)):
            return f"{writer} writes a mean, which the RMS norm {op.source!r} sees"
        for reader in _readers(graph, op):
            if reason := _refused(reader):
                return f"{reason} reads what the norm {op.source!r} gives"
    made = projected(graph, stream, basis)
    return made if isinstance(made, str) else ""


def _refused(op: ir.Op) -> str:
    pads = op.window is not None and any(op.window.padding)
    return f"{op.kind} of module {op.source!r}" if op.kind not in MIXING or pads else ""


def _readers(graph: ir.Graph, norm: ir.Op) -> list[ir.Op]:
    return [op for op in graph.ops if norm.output in op.inputs]


def _with_mean(graph: ir.Graph, stream: Stream) -> str:
    """Return what writes a mean over the channels into a stream, if something does."""
    for op in stream.writers:
        values = [graph.constant(name).astype(np.float64) for name in op.inputs[1:]]
        axis = -1 if op.kind == TABLE else 0
        means = max(np.abs(each.mean(axis)).max() for each in values)
        if means > _NO_MEAN * np.abs(values[0]).max():
            return f"layer {op.source!r}"
    for op in stream.inner:
        added = op.inputs[2:] if op.kind == "affine" else op.inputs
        for name in (name for name in added if graph.tensors[name].data is not None):
            added_once = graph.constant(name).astype(np.float64)
            if np.abs(added_once.mean(-1)).max() > _NO_MEAN * np.abs(added_once).max():
                return f"the constant {name!r}"
    return ""


def _basis(channels: int) -> ir.Array:
    """Return float64 [channels, channels - 1]: orthonormal columns, each with a sum of 0.

    They are those of the reflection that takes (1, ..., 1) to the last axis, but the last one: near
    the axes themselves, so that channels hardly change.
    """
    across = np.full(channels, channels**-0.5)
    across[-1] -= 1
    across /= np.linalg.norm(across)
    return (np.eye(channels) - 2 * np.outer(across, across))[:, :-1]


def _transform(graph: ir.Graph, found: _Match) -> ir.Graph:
    stream, basis = found.stream, found.basis
    made = projected(graph, stream, basis)
    assert not isinstance(made, str)  # such a place is refused
    changed, tensors = made
    left = stream.channels - 1
    for op in stream.blind:
        of_blind, weights = _read_in(graph, op, basis, np.zeros(stream.channels))
        changed[op.output] = of_blind
        tensors += weights
    for norm in stream.norms:
        gamma, beta = (graph.constant(name).astype(np.float64) for name in norm.inputs[1:])
        for op in _readers(graph, norm):
            reader, weights = _read_in(graph, op, gamma[:, None] * basis, beta)
            changed[op.output] = reader
            tensors += weights
        of_norm, weights = _norm(graph, norm, left)
        changed[norm.output] = of_norm
        tensors += weights
    narrow = {*stream.values, *(op.output for op in stream.norms)}
    tensors += [_narrow(graph.tensors[name], left) for name in narrow]
    return with_changed(graph, changed, tensors)


def _narrow(tensor: ir.Tensor, channels: int) -> ir.Tensor:
    return replace(tensor, shape=(*tensor.shape[:-1], channels))


def _norm(graph: ir.Graph, norm: ir.Op, left: int) -> tuple[ir.Op, list[ir.Tensor]]:
    """Return an RMS norm over the channels left that divides as one over all of them does."""
    growth = (left + 1) / left
    how = replace(norm_of(norm), centred=False, eps=norm_of(norm).eps * growth)
    made = [
        constant(graph, f"{norm.output}.{what}_of_left", np.full(left, value))
        for what, value in (("weight", growth**0.5), ("bias", 0.0))
    ]
    inputs = (norm.inputs[0], *(each.name for each in made))
    return replace(norm, inputs=inputs, attributes=how), made


def _read_in(
    graph: ir.Graph, op: ir.Op, basis: ir.Array, beta: ir.Array
) -> tuple[ir.Op, list[ir.Tensor]]:
    """Return a layer that reads the channels left, and its constants."""
    weight, bias = (graph.constant(name).astype(np.float64) for name in op.inputs[1:])
    others = tuple(range(1, weight.ndim))
    made = [
        constant(graph, f"{op.output}.weight_of_left", weight @ basis),
        constant(graph, f"{op.output}.bias_of_left", bias + (weight * beta).sum(others)),
    ]
    return replace(op, inputs=(op.inputs[0], *(each.name for each in made))), made


REWRITE = Rewrite(
    "rms_to_crms",
    "a residual stream without mean is held in one channel less",
    "as for ln_to_rms, and what the norms give is read by layers that do not pad",
    exact=True,
    places=_places,
    transform=_transform,
    opt_in=True,
    caution="an odd number of channels costs vector instructions more than the channel saves",
)
