"""Quotients of two activations in integers, of which the divisor has the zero point -128.

The divisor is at least one step. Our own targets divide integers; a file of others holds a few
steps in float32, each of which is one operation that IEEE 754 defines.
"""

from __future__ import annotations

import math

import numpy as np

from edge.define.rounding import Policy
from edge.ops.builders import CCompiler, OnnxFile, TfliteFile
from edge.ops.integer_spec import IntegerSpec, Operands, broadcast_channels, centred
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from fedkit.graph.ops.quotient import least_of

_FACTOR_BITS = 15  # by which a difference of two int8 times the factor stays within int32
_MOST_SHIFT = 22  # by which 255 steps shifted stay within int32
_MOST_RATIO = 2.0**16  # from which on any quotient is beyond int8
_MOST_STEPS = np.float32(2**20)


def _ratio(graph: ir.Graph, op: ir.Op) -> float:
    """Return what a step of the first over one of the second is, in steps of the output."""
    left, right, out = (graph.tensors[name].scale for name in (*op.inputs, op.output))
    return min(left / right / out, _MOST_RATIO)


def _floor(graph: ir.Graph, op: ir.Op) -> int:
    """Return what the divisor is at least, in steps of its own: 1 to 255."""
    return min(max(1, round(least_of(op) / graph.tensors[op.inputs[1]].scale)), 255)


def _factor(graph: ir.Graph, op: ir.Op) -> tuple[int, int]:
    """Return (factor, shift): a quotient is floor(x * factor / (y << shift) + 1/2)."""
    ratio = _ratio(graph, op)
    shift = min(max(1, _FACTOR_BITS - math.frexp(ratio)[1]), _MOST_SHIFT)
    return round(math.ldexp(ratio, shift)), shift


def _div(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    x, y = (centred(graph, op, number, operands) for number in (0, 1))
    y = np.maximum(y, _floor(graph, op))
    zero_point = graph.tensors[op.output].zero_point
    if policy.format != "own":
        quotient = x.astype(np.float32) / y.astype(np.float32)
        steps = np.clip(quotient * np.float32(_ratio(graph, op)), -_MOST_STEPS, _MOST_STEPS)
        return policy.whole(steps) + zero_point
    factor, shift = _factor(graph, op)
    return np.asarray((x * factor + (y << shift - 1)) // (y << shift) + zero_point)


def _tflite(file: TfliteFile, op: ir.Op) -> None:
    x, y, out = (file.graph.tensors[name] for name in (*op.inputs, op.output))

    def constant(name: str, value: float) -> str:
        data = np.array([value], np.float32)
        return file.tensor(ir.Tensor(f"{op.output}.{name}", (1,), "float32", data))

    def step(operator: str, operands: list[str], name: str, shape: ir.Shape) -> str:
        made = file.tensor(ir.Tensor(f"{op.output}.{name}", shape, "float32"))
        named = "MaximumMinimum" if operator == "MAXIMUM" else operator.capitalize()
        file.operator(operator, operands, made, f"{named}Options", (1, 1))
        return made

    def whole(tensor: ir.Tensor, name: str) -> str:
        """Add an operand less its zero point."""
        cast = file.cast(tensor, f"{op.output}.{name}", "float32")
        zero = constant(f"{name}.zero", tensor.zero_point)
        return step("SUB", [cast, zero], f"{name}.centred", tensor.shape)

    if x.dtype == "float32":
        divisor, least = y.name, least_of(op)
        if least:
            divisor = step("MAXIMUM", [divisor, constant("least", least)], "divisor", y.shape)
        file.operator("DIV", [x.name, divisor], op.output, "DivOptions", (1, 1))
        return
    floor = constant("floor", _floor(file.graph, op))
    divisor = step("MAXIMUM", [whole(y, "right"), floor], "divisor", y.shape)
    quotient = step("DIV", [whole(x, "left"), divisor], "quotient", out.shape)
    factor = constant("factor", _ratio(file.graph, op))
    steps = step("MUL", [quotient, factor], "steps", out.shape)
    # In steps of 1, which are told anew: a division by the scale would round.
    of_steps = ir.Quantization((1.0,), (out.zero_point,))
    plain = ir.Tensor(f"{op.output}.plain", out.shape, "int8", None, of_steps)
    file.operator("QUANTIZE", [steps], file.tensor(plain), "QuantizeOptions", (1, 1))
    file.reshape(plain.name, op.output, out.shape)


def _onnx(file: OnnxFile, op: ir.Op) -> None:
    out = op.output

    def constant(name: str, value: float) -> str:
        return file.constant(f"{out}.{name}", np.array(value, np.float32))

    def whole(number: int) -> str:
        name = op.inputs[number]
        cast = file.cast(name, f"{out}.operand{number}", np.float32)
        zero = constant(f"zero{number}", file.graph.tensors[name].zero_point)
        return file.node("Sub", [cast, zero], f"{out}.centred{number}")

    floor = constant("floor", _floor(file.graph, op))
    divisor = file.node("Max", [whole(1), floor], f"{out}.divisor")
    quotient = file.node("Div", [whole(0), divisor], f"{out}.quotient")
    factor = constant("factor", _ratio(file.graph, op))
    steps = file.node("Mul", [quotient, factor], f"{out}.steps")
    zero_point = np.array(file.graph.tensors[out].zero_point, np.int8)
    zero = file.constant(f"{out}.plain_zero", zero_point)
    file.node("QuantizeLinear", [steps, constant("one", 1.0), zero], out)


def _c99(c: CCompiler, op: ir.Op) -> None:
    factor, shift = _factor(c.graph, op)
    c.pair("ek_div", op, (factor, _floor(c.graph, op)), shift)


SPECS = (IntegerSpec("div", _div, broadcast_channels, tflite=_tflite, onnx=_onnx, c99=_c99),)
