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


def refuse_probabilities(what: str, is_last: bool) -> NoReturn:
    """Raise `Unsupported` for one of `LOGITS`, which as the last op is not needed."""
    way = f"leave it out: the artifact gives logits, {LOGITS[what]}"
    raise Unsupported(f"{what} at the end; {way}" if is_last else f"{what} is not supported")


def _read_aten(
    kind: ir.Kind, called: str, reader: ModelReader, node: Any, a: Mapping[str, Any]
) -> ir.Tensor:
    if reader.trains:
        refuse_probabilities(called, reader.is_last(node))
    x = activation(a["self"])
    require_channels(kind, a["dim"], rank_of(reader, node))
    return reader.op(kind, node, [x])


def _read_onnx(kind: ir.Kind, called: str, reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    x, is_old = activation(node.operand(0)), node.opset < _ONE_AXIS
    axis = int(node.attribute("axis", 1 if is_old else -1))
    require_channels(called, axis, rank_of(reader, node))
    whole = is_old and len(x.shape) == 4 and x.shape[1] * x.shape[2] > 1
    require(not whole, f"{called} of opset {node.opset} over all from axis 1 on")
    return reader.op(kind, node, [x])


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
        "softmax over channels",
        _softmax,
        partial(_example, "softmax"),
        scale=ir.Quantization((1 / 256,), (-128,)),
        **_readers("softmax", "Softmax"),
    ),
    Spec(
        "log_softmax",
        "log-softmax over channels",
        _log_softmax,
        partial(_example, "log_softmax"),
        scale=ir.Quantization((1 / 16,), (127,)),
        **_readers("log_softmax", "LogSoftmax"),
    ),
)
