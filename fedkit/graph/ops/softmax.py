"""Softmax over the channels of each place, and its logarithm."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

import numpy as np

from fedkit.graph import ir
from fedkit.graph.operands import (
    Unsupported,
    activation,
    rank_of,
    require,
    require_channels,
)
from fedkit.graph.spec import Aten, ModelReader, Onnx, OnnxNode, Random, Spec, any_shape, graph_of
from fedkit.graph.tokens import channels_as_last, last_as_channels

LOGITS: Mapping[str, str] = dict.fromkeys(("Softmax", "LogSoftmax"), "argmax is the same")
"""What makes probabilities of logits -> what these tell without it."""

_ONE_AXIS = 13
"""Opset from which a Softmax is over one axis; before, it is over all that follow, too."""


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


def refuse_probabilities(what: str) -> NoReturn:
    """Raise `Unsupported` for one of `LOGITS` that is the last op, where it is not needed."""
    raise Unsupported(f"{what} at the end; leave it out: the artifact gives logits, {LOGITS[what]}")


def _read_aten(
    kind: ir.Kind, called: str, reader: ModelReader, node: Any, a: Mapping[str, Any]
) -> ir.Tensor:
    if reader.trains and reader.is_last(node):
        refuse_probabilities(called)
    return _over(reader, node, kind, activation(a["self"]), kind, a["dim"])


def _over(
    reader: ModelReader, node: Any, kind: ir.Kind, x: ir.Tensor, called: str, axis: int
) -> ir.Tensor:
    """Add one over channels or features, or over the last axis."""
    rank = rank_of(reader, node)
    if axis % rank != rank - 1 or rank == 2:
        require_channels(called, axis, rank)
        return reader.op(kind, node, [x])
    laid = last_as_channels(reader, node, x)
    made = reader.op(kind, node, [laid], laid.shape, suffix=".of_tokens")
    return channels_as_last(reader, node, made)


def _read_onnx(kind: ir.Kind, called: str, reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    x, is_old = activation(node.operand(0)), node.opset < _ONE_AXIS
    axis = int(node.attribute("axis", 1 if is_old else -1))
    rank = rank_of(reader, node)
    whole = is_old and axis % rank != rank - 1 and x.shape[1:3] != (1, 1)
    require(not whole, f"{called} of opset {node.opset} over all from axis {axis} on")
    return _over(reader, node, kind, x, called, axis)


def _readers(kind: ir.Kind, called: str) -> dict[str, Any]:
    aten: Aten = partial(_read_aten, kind, called)
    onnx: Onnx = partial(_read_onnx, kind, called)
    return {
        "aten": dict.fromkeys((f"aten.{kind}.int", f"aten._{kind}.default"), aten),
        "onnx": {called: onnx},
    }


SPECS = (
    Spec(
        "softmax",
        "softmax",
        _softmax,
        partial(_example, "softmax"),
        scale=ir.Quantization((1 / 256,), (-128,)),
        **_readers("softmax", "Softmax"),
    ),
    Spec(
        "log_softmax",
        "log-softmax",
        _log_softmax,
        partial(_example, "log_softmax"),
        scale=ir.Quantization((1 / 16,), (127,)),
        **_readers("log_softmax", "LogSoftmax"),
    ),
)
