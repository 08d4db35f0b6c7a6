"""Products of matrices of integers.

The second has the zero point 0, for which XNNPACK takes the op; it is ten times as fast. TFLite's
own kernel rounds halves up in tflite-runtime, as its convolutions, and in LiteRT away from zero.
"""

from __future__ import annotations

import math

import numpy as np

from edge.define.rounding import Policy, multipliers
from edge.ops.builders import CCompiler, OnnxFile, TfliteFile
from edge.ops.integer_spec import Cost, IntegerSpec, Link, Operands, centred, rescaled
from fedkit.core.numerics import Int64s
from fedkit.graph import ir


def _matmul(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    x, y = (centred(graph, op, number, operands).astype(np.float64) for number in (0, 1))
    sums = (x @ y).astype(np.int64)  # exact: below 2^53
    return rescaled(policy, graph, op, sums, scale_of_sums(graph, op), "products")


def scale_of_sums(graph: ir.Graph, op: ir.Op) -> float:
    """Return what a sum is worth, by a product of float32, as TFLite multiplies them."""
    left, right = (np.float32(graph.tensors[name].scale) for name in op.inputs)
    return float(left * right)


def _links(graph: ir.Graph, op: ir.Op) -> list[Link]:
    """Link all channels with all: none may go."""
    outputs = graph.tensors[op.output].shape[-1]
    links = []
    for name in op.inputs:
        inputs = graph.tensors[name].shape[-1]
        pairs = np.indices((inputs, outputs)).reshape(2, -1)
        links.append(Link(name, pairs[0], pairs[1]))
    return links


def _tflite(file: TfliteFile, op: ir.Op) -> None:
    file.operator("BATCH_MATMUL", op.inputs, op.output, "BatchMatMulOptions")


def _onnx(file: OnnxFile, op: ir.Op) -> None:
    """Turn maps to where matrices are in the last two axes, and back."""
    out = op.output
    x, y = (
        file.node("Transpose", [name], f"{out}.matrices{number}", perm=(0, 2, 3, 1))
        for number, name in enumerate(op.inputs)
    )
    scales = [file.scales(name) for name in (*op.inputs, out)]
    if file.is_integer:
        operands = [x, *scales[0], y, *scales[1], *scales[2]]
        product = file.node("QLinearMatMul", operands, f"{out}.product")
    else:
        real = [
            file.node("DequantizeLinear", [value, *how], f"{out}.operand{number}")
            for number, (value, how) in enumerate(zip((x, y), scales, strict=False))
        ]
        value = file.node("MatMul", real, f"{out}.real")
        product = file.node("QuantizeLinear", [value, *scales[2]], f"{out}.product")
    file.node("Transpose", [product], out, perm=(0, 3, 1, 2))


def _c99(c: CCompiler, op: ir.Op) -> None:
    if c.multiplied(op):
        return
    out = c.graph.tensors[op.output]
    how = multipliers(np.asarray(scale_of_sums(c.graph, op) / out.scale))
    numbers = int(how.multiplier), int(how.shift), out.zero_point + 128
    scale = c.struct("ek_product_scale", *numbers)
    layouts = [c.layout(name) for name in (*op.inputs, op.output)]
    places = [c.place(name) for name in op.inputs]
    c.call("ek_matmul", scale, *layouts, *places, c.new(op.output), source=op.source)


def _cost(graph: ir.Graph, op: ir.Op) -> Cost:
    terms = graph.tensors[op.inputs[0]].shape[3]
    products = math.prod(graph.tensors[op.output].shape) * terms
    return Cost(0, 0, products, 0, products)


SPECS = (IntegerSpec("matmul", _matmul, _links, tflite=_tflite, onnx=_onnx, c99=_c99, cost=_cost),)
