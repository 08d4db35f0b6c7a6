"""Turn the layer norms of a Pre-LN Transformer into RMS norms, which take no mean.

A layer norm is an RMS norm of what has no mean over the channels. All that writes the residual
stream is made so that it has none: weights, biases and constants less their mean over the channels
that they write (Jiang et al., 2023, "Pre-RMSNorm and Pre-CRMSNorm Transformers").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from edge.passes.rewrite import Hints, Place, Rewrite
from edge.passes.stream import Stream, named, norm_of, projected, streams
from edge.passes.unread import with_changed
from fedkit.graph import ir


def _places(graph: ir.Graph, given: Hints) -> Iterator[Place]:
    for stream in streams(graph):
        centred = [norm_of(op).centred for op in stream.norms]
        if any(centred):
            yield Place(stream.norms[0].output, named(stream), _why_not(graph, stream), stream)


def _why_not(graph: ir.Graph, stream: Stream) -> str:
    plain = next((op for op in stream.norms if not norm_of(op).centred), None)
    if stream.problems:
        return stream.problems[0]
    if plain is not None:
        return f"the RMS norm {plain.source!r} reads the stream too, and sees its mean"
    if stream.channels == 1:
        return "the stream has one channel, which would be 0"
    made = projected(graph, stream, _without_mean(stream))
    return made if isinstance(made, str) else ""


def _without_mean(stream: Stream) -> ir.Array:
    return np.eye(stream.channels) - 1 / stream.channels


def _transform(graph: ir.Graph, stream: Stream) -> ir.Graph:
    made = projected(graph, stream, _without_mean(stream))
    assert not isinstance(made, str)  # such a place is refused
    changed, tensors = made
    for op in stream.norms:
        changed[op.output] = replace(op, attributes=replace(norm_of(op), centred=False))
    return with_changed(graph, changed, tensors)


REWRITE = Rewrite(
    "ln_to_rms",
    "layer norms of a Pre-LN Transformer become RMS norms",
    "all that writes the residual stream is a convolution, linear layer, embedding or constant, "
    "and only layer norms read it; Post-LN and Mix-LN are refused, as is what would fill pruned "
    "weights",
    exact=True,
    places=_places,
    transform=_transform,
)
