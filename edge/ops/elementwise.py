"""Activations by themselves, and sums of two, in integers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edge.define.rounding import Policy, add_multipliers, product_multiplier
from edge.ops.builders import CCompiler, FpgaCompiler, OnnxFile, Rescaled, TfliteFile
from edge.ops.integer_spec import (
    IntegerSpec,
    Operands,
    broadcast_channels,
    centred,
    is_plain,
    rescaled,
    same_channels,
)
from fedkit.core.errors import ExportError
from fedkit.core.numerics import Int64s
from fedkit.graph import ir

_SUM = Rescaled("Add", "QLinearAdd")
_PRODUCT = Rescaled("Mul", "QLinearMul")


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


def _sub(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    left, right, out = (graph.tensors[name] for name in (*op.inputs, op.output))
    x, y = (centred(graph, op, number, operands) for number in (0, 1))
    return policy.subtract(x, y, left, right, out) + out.zero_point


def _mul(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    left, right, out = (graph.tensors[name] for name in (*op.inputs, op.output))
    x, y = (centred(graph, op, number, operands) for number in (0, 1))
    return policy.product(x * y, left, right, out) + out.zero_point


def _sub_onnx(file: OnnxFile, op: ir.Op) -> None:
    # The integer form has none of its own: what is between two scales is float.
    operands = [file.dequantised(op, number) for number in (0, 1)]
    file.quantised(op, file.node("Sub", operands, f"{op.output}.real"), op.output)


def terms_of(graph: ir.Graph, op: ir.Op) -> tuple[int, int, int]:
    """Return by what both operands of a sum are multiplied in C, and by what it is shifted."""
    left, right, out = (graph.tensors[name] for name in (*op.inputs, op.output))
    return add_multipliers(left.scale / out.scale, right.scale / out.scale)


def _add_c99(c: CCompiler, op: ir.Op) -> None:
    if is_plain(c.graph, op):
        c.sum(op)
        return
    a, b, shift = terms_of(c.graph, op)
    c.pair("ek_sum_of", op, (a, b), shift)


def _sub_c99(c: CCompiler, op: ir.Op) -> None:
    a, b, shift = terms_of(c.graph, op)
    c.pair("ek_sum_of", op, (a, -b), shift)


def _mul_c99(c: CCompiler, op: ir.Op) -> None:
    left, right, out = (c.graph.tensors[name] for name in (*op.inputs, op.output))
    factor, shift = product_multiplier(left.scale * right.scale / out.scale)
    c.pair("ek_mul", op, (factor,), shift)


def _add_tflite(file: TfliteFile, op: ir.Op) -> None:
    fused = file.activation(op)
    file.operator("ADD", op.inputs, op.output, "AddOptions", fusedActivationFunction=fused)


def _add_fpga(engine: FpgaCompiler, op: ir.Op) -> Iterator[Any]:
    left, right, out = (engine.graph.tensors[name] for name in (*op.inputs, op.output))
    if not is_plain(engine.graph, op):
        raise ExportError("it takes two activations of one shape there")
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
        broadcast_channels,
        tflite=_add_tflite,
        onnx=lambda file, op: file.rescaled(op, op.output, _SUM),
        c99=_add_c99,
        fpga=_add_fpga,
    ),
    IntegerSpec(
        "sub",
        _sub,
        broadcast_channels,
        tflite=lambda file, op: file.operator("SUB", op.inputs, op.output, "SubOptions"),
        onnx=_sub_onnx,
        c99=_sub_c99,
    ),
    IntegerSpec(
        "mul",
        _mul,
        broadcast_channels,
        tflite=lambda file, op: file.operator("MUL", op.inputs, op.output, "MulOptions"),
        onnx=lambda file, op: file.rescaled(op, op.output, _PRODUCT),
        c99=_mul_c99,
    ),
)
