"""Windows that choose or average within a channel, in integers; they keep the scale."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np

from edge.define.rounding import Policy
from edge.ops.builders import CCompiler, OnnxFile, Rescaled, TfliteFile
from edge.ops.integer_spec import IntegerSpec, Operands, centred, same_channels
from edge.ops.weighted import sliding
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from fedkit.graph.taps import taps

_AVERAGE = Rescaled("AveragePool", "QLinearAveragePool")


def _average(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    x, tensor = centred(graph, op, 0, operands), graph.tensors[op.inputs[0]]
    ones = np.ones((1, *x.shape[1:3], 1), np.int64)
    values, present = ([tap for _, _, tap in taps(each, op.window)] for each in (x, ones))
    counts = np.asarray(sum(present))
    is_whole = op.sliding.kernel == x.shape[1:3] and not any(op.sliding.padding)
    return policy.average(values, counts, tensor, is_whole) + tensor.zero_point


def _maximum(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    return np.asarray(
        np.max([tap for _, _, tap in taps(operands[0], op.window, fill=-128)], axis=0)
    )


def _tflite(code: str, fill: Literal["zero", "lowest"] | None, file: TfliteFile, op: ir.Op) -> None:
    x, fields = file.window(op, fill)
    height, width = op.sliding.kernel
    sizes: dict[str, Any] = {"filterHeight": height, "filterWidth": width}
    file.operator(code, [x], op.output, "Pool2DOptions", **fields, **sizes)


def _dilated(op: ir.Op) -> str:
    dilation = op.sliding.dilation
    if dilation == (1, 1):
        return ""
    return f"is dilated by {dilation}, which the integer form cannot say: use dilation 1"


def _maximum_onnx(file: OnnxFile, op: ir.Op) -> None:
    dilations = op.sliding.dilation
    file.node("MaxPool", [op.inputs[0]], op.output, dilations=dilations, **sliding(op))


def _c99(function: str, c: CCompiler, op: ir.Op) -> None:
    window = op.sliding
    top, _, left, _ = window.padding
    numbers = *window.kernel, *window.stride, *window.dilation, top, left
    layouts = [c.layout(name) for name in (op.inputs[0], op.output)]
    places = c.place(op.inputs[0]), c.new(op.output)
    c.call(function, c.struct("ek_window", *numbers), *layouts, *places, source=op.source)


SPECS = (
    IntegerSpec(
        "avg_pool2d",
        _average,
        same_channels,
        tflite=partial(_tflite, "AVERAGE_POOL_2D", None),
        onnx=lambda file, op: file.rescaled(op, op.output, _AVERAGE, **sliding(op)),
        c99=partial(_c99, "ek_avg_pool"),
        fpga=lambda engine, op: engine.pool(op, maxima=False),
        not_onnx=_dilated,
    ),
    IntegerSpec(
        "max_pool2d",
        _maximum,
        same_channels,
        tflite=partial(_tflite, "MAX_POOL_2D", "lowest"),
        onnx=_maximum_onnx,
        c99=partial(_c99, "ek_max_pool"),
        fpga=lambda engine, op: engine.pool(op, maxima=True),
    ),
)
