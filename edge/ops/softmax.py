"""Softmax over channels in integers, and its logarithm."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge.define.rounding import Policy, float_powers, log_factors, powers_of
from edge.ops.builders import MICROSOFT, CCompiler, OnnxFile, TfliteFile
from edge.ops.integer_spec import IntegerSpec, Link, Operands
from fedkit.core.numerics import Int64s
from fedkit.graph import ir

_OPSET = 13  # the first in which a softmax is over one axis


def _softmax(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    x, out = (graph.tensors[name] for name in (op.inputs[0], op.output))
    return policy.softmax(operands[0], x) + out.zero_point


def _log_softmax(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    x, out = (graph.tensors[name] for name in (op.inputs[0], op.output))
    return policy.log_softmax(operands[0], x, out) + out.zero_point


def _all_channels(graph: ir.Graph, op: ir.Op) -> list[Link]:
    """Link each channel with all: none may go."""
    channels = graph.tensors[op.output].shape[-1]
    each = np.arange(channels)
    return [Link(op.inputs[0], np.repeat(each, channels), np.tile(each, channels))]


def _softmax_onnx(file: OnnxFile, op: ir.Op) -> None:
    powers = float_powers(file.graph.tensors[op.inputs[0]])
    if powers is not None:
        _by_steps(file, op, powers)
    elif file.is_integer:
        operands = [op.inputs[0], *file.scales(op.inputs[0]), *file.scales(op.output)]
        file.node("QLinearSoftmax", operands, op.output, MICROSOFT, axis=1, opset=_OPSET)
    else:
        _real_onnx(file, op, "Softmax")


def _by_steps(file: OnnxFile, op: ir.Op, powers: ir.FloatArray) -> None:
    """Look powers up, and divide them by their sum; each step is exact, or one of IEEE 754."""
    out = op.output
    x = file.cast(op.inputs[0], f"{out}.whole", np.int32)
    axes = file.constant(f"{out}.axes", np.array([1], np.int64))
    most = file.node("ReduceMax", [x, axes], f"{out}.most", keepdims=1)
    below = file.node("Sub", [most, x], f"{out}.below")
    table = file.constant(f"{out}.powers", powers)
    each = file.node("Gather", [table, below], f"{out}.each")
    total = file.node("ReduceSum", [each, axes], f"{out}.total", keepdims=1)
    steps, one = (
        file.constant(f"{out}.{name}", np.array(value, np.float32))
        for name, value in (("steps", 256), ("one", 1))
    )
    scaled = file.node("Mul", [each, steps], f"{out}.scaled")
    share = file.node("Div", [scaled, total], f"{out}.share")
    zero_point = file.constant(f"{out}.plain_zero", np.array(-128, np.int8))
    file.node("QuantizeLinear", [share, one, zero_point], out)


def _real_onnx(file: OnnxFile, op: ir.Op, operator: str) -> None:
    real = file.node(operator, [file.dequantised(op, 0)], f"{op.output}.real", axis=1)
    file.quantised(op, real, op.output)


def _softmax_tflite(file: TfliteFile, op: ir.Op) -> None:
    file.operator("SOFTMAX", op.inputs, op.output, "SoftmaxOptions", beta=1.0)


def _log_softmax_tflite(file: TfliteFile, op: ir.Op) -> None:
    file.operator("LOG_SOFTMAX", op.inputs, op.output, "LogSoftmaxOptions")


def powers_struct(c: CCompiler, op: ir.Op) -> Any:
    """Return the `ek_powers` of a softmax."""
    x = c.graph.tensors[op.inputs[0]]
    powers = powers_of(x.scale, x.shape[-1])[0].astype(np.uint32)
    return c.struct("ek_powers", powers, 0, 0)


def _softmax_c99(c: CCompiler, op: ir.Op) -> None:
    _call(c, op, "ek_softmax", powers_struct(c, op))


def _log_softmax_c99(c: CCompiler, op: ir.Op) -> None:
    x, out = (c.graph.tensors[name] for name in (op.inputs[0], op.output))
    powers, one = powers_of(x.scale, x.shape[-1])
    numbers = log_factors(x.scale, one, out.scale)
    _call(c, op, "ek_log_softmax", c.struct("ek_powers", powers.astype(np.uint32), *numbers))


def _call(c: CCompiler, op: ir.Op, function: str, powers: object) -> None:
    layouts = [c.layout(name) for name in (op.inputs[0], op.output)]
    places = c.place(op.inputs[0]), c.new(op.output)
    c.call(function, powers, *layouts, *places, source=op.source)


SPECS = (
    IntegerSpec(
        "softmax",
        _softmax,
        _all_channels,
        tflite=_softmax_tflite,
        onnx=_softmax_onnx,
        c99=_softmax_c99,
    ),
    IntegerSpec(
        "log_softmax",
        _log_softmax,
        _all_channels,
        tflite=_log_softmax_tflite,
        onnx=lambda file, op: _real_onnx(file, op, "LogSoftmax"),
        c99=_log_softmax_c99,
    ),
)
