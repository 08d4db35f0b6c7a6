"""Softmax over the channels of each place, and its logarithm."""

from __future__ import annotations

from functools import partial

import numpy as np

from fedkit.graph import ir
from fedkit.graph.spec import Random, Spec, any_shape, graph_of


def _log_softmax(op: ir.Op, graph: ir.Graph, x: ir.FloatArray) -> ir.FloatArray:
    wide = x.astype(np.float64)
    below = wide - wide.max(axis=-1, keepdims=True)
    logarithm = np.log(np.exp(below).sum(axis=-1, keepdims=True))
    return np.asarray(below - logarithm, np.float32)


def _softmax(op: ir.Op, graph: ir.Graph, x: ir.FloatArray) -> ir.FloatArray:
    wide = x.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def _example(kind: ir.Kind, random: Random) -> ir.Graph:
    shape = any_shape(random)
    return graph_of((shape, shape), (), ir.Op(kind, ("x",), ("y",)))


SPECS = (
    Spec(
        "softmax",
        "softmax over channels",
        _softmax,
        partial(_example, "softmax"),
        scale=ir.Quantization((1 / 256,), (-128,)),
    ),
    Spec(
        "log_softmax",
        "log-softmax over channels",
        _log_softmax,
        partial(_example, "log_softmax"),
        scale=ir.Quantization((1 / 16,), (127,)),
    ),
)
