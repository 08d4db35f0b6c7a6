"""Activations by themselves, and sums of two, in integers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edge.define.rounding import Policy, add_multipliers
from edge.ops.builders import CCompiler, FpgaCompiler, OnnxFile, Rescaled, TfliteFile
from edge.ops.integer_spec import IntegerSpec, Operands, centred, rescaled, same_channels
from fedkit.core.numerics import Int64s
from fedkit.graph import ir

_SUM = Rescaled("Add", "QLinearAdd")


def _relu(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    """Bring values to the scale of the output; what every result is clipped to does the rest."""
    scale = graph.tensors[op.inputs[0]].scale
    return rescaled(policy, graph, op, centred(graph, op, 0, operands), scale, "single")


def _relu_onnx(file: OnnxFile, op: ir.Op) -> None:
    # The integer form has none of its own: what is between two scales is float.
    value = file.node("Relu", [file.dequantised(op, 0)], f"{op.output}.real")
    file.quantised(op, value, op.output)


def _relu6_onnx(file: OnnxFile, op: ir.Op) -> None:
    real = file.dequantised(op, 0)
    bounds = [
        file.constant(f"{op.output}.{name}", np.array(bound, np.float32))
        for name, bound in (("low", 0.0), ("high", 6.0))
    ]
    value = file.node("Clip", [real, *bounds], f"{op.output}.real")
    file.quantised(op, value, op.output)


def _relu_c99(c: CCompiler, op: ir.Op) -> None:
    x, out = (c.graph.tensors[name] for name in (op.inputs[0], op.output))
    c.per_channel(op, (1, 1), x.scale / out.scale)


def _add(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    left, right = (graph.tensors[name] for name in op.inputs)
    out = graph.tensors[op.output]
    x, y = (centred(graph, op, number, operands) for number in (0, 1))
    return policy.add(x, y, left, right, out) + out.zero_point


def _add_tflite(file: TfliteFile, op: ir.Op) -> None:
    fused = file.activation(op)
    file.operator("ADD", op.inputs, op.output, "AddOptions", fusedActivationFunction=fused)


def _add_fpga(engine: FpgaCompiler, op: ir.Op) -> Iterator[Any]:
    left, right, out = (engine.graph.tensors[name] for name in (*op.inputs, op.output))
    a, b, shift = add_multipliers(left.scale / out.scale, right.scale / out.scale)
    return engine.single(op, (a, b), -a * left.zero_point - b * right.zero_point, (1, shift))


SPECS = (
    IntegerSpec(
        "relu",
        _relu,
        same_channels,
        tflite=lambda file, op: file.operator("RELU", op.inputs, op.output),
        onnx=_relu_onnx,
        c99=_relu_c99,
        fpga=lambda engine, op: engine.rescale(op),
    ),
    IntegerSpec(
        "relu6",
        _relu,
        same_channels,
        tflite=lambda file, op: file.operator("RELU6", op.inputs, op.output),
        onnx=_relu6_onnx,
        c99=_relu_c99,
        fpga=lambda engine, op: engine.rescale(op),
    ),
    IntegerSpec(
        "add",
        _add,
        same_channels,
        tflite=_add_tflite,
        onnx=lambda file, op: file.rescaled(op, op.output, _SUM),
        c99=lambda c, op: c.sum(op),
        fpga=_add_fpga,
    ),
)
