"""What puts integers elsewhere and computes none; all keep the scale."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from edge.define.rounding import Policy
from edge.ops.builders import CCompiler, OnnxFile, TfliteFile
from edge.ops.integer_spec import IntegerSpec, Operands, same_channels, same_elements
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from fedkit.graph.taps import padded

# Pad


def _pad(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    return padded(operands[0], op.window, graph.tensors[op.inputs[0]].zero_point)


def _pad_tflite(file: TfliteFile, op: ir.Op) -> None:
    file.pad(file.graph.tensors[op.inputs[0]], op.sliding.padding, op.output)


def _pad_onnx(file: OnnxFile, op: ir.Op) -> None:
    x = file.graph.tensors[op.inputs[0]]
    top, bottom, left, right = op.sliding.padding
    amounts = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
    operands = [
        x.name,
        file.constant(f"{op.output}.amounts", amounts),
        file.constant(f"{op.output}.value", np.array(x.zero_point, np.int8)),
    ]
    file.node("Pad", operands, op.output)


def _pad_c99(c: CCompiler, op: ir.Op) -> None:
    top, _, left, _ = op.sliding.padding
    layouts = [c.layout(name) for name in (op.inputs[0], op.output)]
    places = c.place(op.inputs[0]), c.new(op.output)
    c.call("ek_pad", *layouts, top, left, *places, source=op.source)


# Reshape


def _reshape(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    (x,) = operands
    return x.reshape(len(x), *graph.tensors[op.output].shape[1:])


def _reshape_tflite(file: TfliteFile, op: ir.Op) -> None:
    file.reshape(op.inputs[0], op.output, file.graph.tensors[op.output].shape)


def _reshape_onnx(file: OnnxFile, op: ir.Op) -> None:
    """Write a reshape, which counts in the order of NHWC."""
    name, shape = op.inputs[0], file.graph.tensors[op.inputs[0]].shape
    out = file.graph.tensors[op.output].shape
    if _order_matters(shape):
        name = file.node("Transpose", [name], f"{op.output}.nhwc", perm=(0, 2, 3, 1))
    if _order_matters(out):
        file.reshape(name, f"{op.output}.shaped", out)
        file.node("Transpose", [f"{op.output}.shaped"], op.output, perm=(0, 3, 1, 2))
    elif len(out) == 4:
        file.reshape(name, op.output, (out[0], out[3], *out[1:3]))
    else:
        file.reshape(name, op.output, out)


def _order_matters(shape: ir.Shape) -> bool:
    """Return whether NHWC and NCHW differ in the order of the elements."""
    return len(shape) == 4 and shape[3] > 1 and shape[1] * shape[2] > 1


def _reshape_c99(c: CCompiler, op: ir.Op) -> None:
    if c.moved(op):
        return
    x, out = (c.graph.tensors[name].shape for name in (op.inputs[0], op.output))
    is_pixel = len(out) == 4 and math.prod(out) == out[3] == x[-1]
    layouts = [c.layout(name) for name in (op.inputs[0], op.output)]
    if layouts[0] == layouts[1]:
        c.reuse(op.inputs[0], op.output)
    elif is_pixel:
        c.call("ek_pad", *layouts, 0, 0, c.place(op.inputs[0]), c.new(op.output), source=op.source)
    elif len(out) == 4:
        c.call("ek_reshape", *layouts, c.place(op.inputs[0]), c.new(op.output), source=op.source)
    else:
        c.to_vector("ek_interleave", op)


# Flatten


def _flatten(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    (x,) = operands
    return np.moveaxis(x, 3, 1).reshape(len(x), -1)


def _flatten_tflite(file: TfliteFile, op: ir.Op) -> None:
    x = file.graph.tensors[op.inputs[0]]
    _, h, w, c = x.shape
    name = file.tensor(ir.Tensor(f"{op.output}.nchw", (1, c, h, w), x.dtype, None, x.quantization))
    axes = file.constant(f"{name}.axes", [0, 3, 1, 2])
    file.operator("TRANSPOSE", [x.name, axes], name, "TransposeOptions")
    file.reshape(name, op.output, (1, math.prod(x.shape)))


def _flatten_onnx(file: OnnxFile, op: ir.Op) -> None:
    size = math.prod(file.graph.tensors[op.inputs[0]].shape)
    file.reshape(op.inputs[0], op.output, (1, size))


SPECS = (
    IntegerSpec(
        "pad",
        _pad,
        same_channels,
        tflite=_pad_tflite,
        onnx=_pad_onnx,
        c99=_pad_c99,
        fpga=lambda engine, op: engine.pad(op),
    ),
    IntegerSpec(
        "reshape",
        _reshape,
        partial(same_elements, order=lambda elements: elements),
        tflite=_reshape_tflite,
        onnx=_reshape_onnx,
        c99=_reshape_c99,
        fpga=lambda engine, op: engine.reshape(op),
    ),
    IntegerSpec(
        "flatten_nchw",
        _flatten,
        partial(same_elements, order=lambda elements: np.moveaxis(elements, 3, 1)),
        tflite=_flatten_tflite,
        onnx=_flatten_onnx,
        c99=lambda c, op: c.to_vector("ek_flatten", op),
        fpga=lambda engine, op: engine.flatten(op),
    ),
)
