"""The axes of a map of integers in another order."""

from __future__ import annotations

import numpy as np

from edge.define.rounding import Policy
from edge.ops.builders import CCompiler, OnnxFile, TfliteFile
from edge.ops.integer_spec import IntegerSpec, Link, Operands, same_channels
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from fedkit.graph.ops.transpose import axes_of

_CHANNELS = 3


def _transpose(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    return operands[0].transpose(0, *axes_of(op))


def _links(graph: ir.Graph, op: ir.Op) -> list[Link]:
    """Link channels that stay channels; else each of the result holds some of all."""
    if axes_of(op)[-1] == _CHANNELS:
        return same_channels(graph, op)
    inputs, outputs = (graph.tensors[name].shape[-1] for name in (op.inputs[0], op.output))
    pairs = np.indices((inputs, outputs)).reshape(2, -1)
    return [Link(op.inputs[0], pairs[0], pairs[1])]


def _tflite(file: TfliteFile, op: ir.Op) -> None:
    axes = file.constant(f"{op.output}.axes", [0, *axes_of(op)])
    file.operator("TRANSPOSE", [op.inputs[0], axes], op.output, "TransposeOptions")


def _onnx(file: OnnxFile, op: ir.Op) -> None:
    of_file = {1: 2, 2: 3, 3: 1}
    rows, columns, channels = (of_file[axis] for axis in axes_of(op))
    file.node("Transpose", [op.inputs[0]], op.output, perm=(0, channels, rows, columns))


def _c99(c: CCompiler, op: ir.Op) -> None:
    c.moved(op)  # loops can always


SPECS = (
    IntegerSpec(
        "transpose",
        _transpose,
        _links,
        tflite=_tflite,
        onnx=_onnx,
        c99=_c99,
        fpga=lambda engine, op: engine.transpose(op, axes_of(op)),
    ),
)
