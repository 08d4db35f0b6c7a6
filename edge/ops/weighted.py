"""Convolutions and linear layers in integers: exact sums of products, rescaled per channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np

from edge.define.rounding import Policy, Summed
from edge.ops.builders import OnnxFile, Rescaled, TfliteFile
from edge.ops.integer_spec import IntegerSpec, Link, Operands, centred, rescaled
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from fedkit.graph.integers import accumulator_bound
from fedkit.graph.ops.registry import groups_of
from fedkit.graph.taps import taps

_CONV = Rescaled("Conv", "QLinearConv", domain="")
_LINEAR = Rescaled("Gemm", "QGemm", bias_first=True)


def _weighted(
    product: Callable[[ir.Op, Int64s, Int64s], Int64s],
    of: Summed,
    policy: Policy,
    graph: ir.Graph,
    op: ir.Op,
    operands: Operands,
) -> Int64s:
    sums = product(op, centred(graph, op, 0, operands), operands[1]) + operands[2]
    weight = graph.tensors[op.inputs[1]].quantization
    assert weight is not None  # the verifier's rule
    scale = graph.tensors[op.inputs[0]].scale * np.asarray(weight.scale)
    return rescaled(policy, graph, op, sums, scale, of)


def _conv2d(op: ir.Op, x: Int64s, w: Int64s) -> Int64s:
    real = _exact_for(w, op.kind)
    values, weights = x.astype(real), w.astype(real)
    parts = (
        np.ascontiguousarray(tap).reshape(-1, x.shape[3]) @ weights[:, i, j].T
        for i, j, tap in taps(values, op.window)
    )
    shape = len(x), *op.sliding.output(*x.shape[1:3]), len(w)
    return np.asarray(reduce(np.add, parts), np.int64).reshape(shape)


def _depthwise(op: ir.Op, x: Int64s, w: Int64s) -> Int64s:
    real = _exact_for(w, op.kind)
    values, weights = np.repeat(x.astype(real), w.shape[3] // x.shape[3], axis=3), w.astype(real)
    parts = (tap * weights[0, i, j] for i, j, tap in taps(values, op.window))
    return np.asarray(reduce(np.add, parts), np.int64)


def _grouped(op: ir.Op, x: Int64s, w: Int64s) -> Int64s:
    groups = x.shape[3] // w.shape[3]
    pairs = zip(np.split(x, groups, 3), np.split(w, groups, 0), strict=True)
    return np.concatenate([_conv2d(op, *pair) for pair in pairs], 3)


def _linear(op: ir.Op, x: Int64s, w: Int64s) -> Int64s:
    real = _exact_for(w, op.kind)
    return np.asarray(x.astype(real) @ w.T.astype(real), np.int64)


def _exact_for(w: Int64s, kind: ir.Kind) -> type[np.floating[Any]]:
    """Return a type in which no sum of int8 values times these weights is rounded.

    Products of floats are many times as fast as those of integers.
    """
    return np.float32 if accumulator_bound(w, np.zeros(1), kind) < 2**24 else np.float64


def _no_links(graph: ir.Graph, op: ir.Op) -> list[Link]:
    """Return nothing: a weight that is not zero says who reads whom."""
    return []


def _grouped_links(graph: ir.Graph, op: ir.Op) -> list[Link]:
    """Link all channels of a group: they stay or go together, as groups have one size."""
    sizes = (graph.tensors[name].shape[-1] for name in (op.inputs[0], op.output))
    inputs, outputs = (np.arange(size).reshape(groups_of(graph, op), -1) for size in sizes)
    pairs = np.repeat(inputs, outputs.shape[1], 1), np.tile(outputs, inputs.shape[1])
    return [Link(op.inputs[0], *(each.ravel() for each in pairs))]


def _tflite_conv2d(file: TfliteFile, op: ir.Op) -> None:
    x, fields = file.window(op, "zero")
    dilation = _dilation(op)
    inputs = [x, *op.inputs[1:]]
    file.operator("CONV_2D", inputs, op.output, "Conv2DOptions", (1, 3), **fields, **dilation)


def _tflite_depthwise(file: TfliteFile, op: ir.Op) -> None:
    x, fields = file.window(op, "zero")
    out, channels = (file.graph.tensors[name].shape[3] for name in (op.output, op.inputs[0]))
    file.operator(
        "DEPTHWISE_CONV_2D",
        [x, *op.inputs[1:]],
        op.output,
        "DepthwiseConv2DOptions",
        (1, 3),
        depthMultiplier=out // channels,
        **fields,
        **_dilation(op),
    )


def _dilation(op: ir.Op) -> dict[str, Any]:
    height, width = op.sliding.dilation
    return {"dilationHFactor": height, "dilationWFactor": width}


def _tflite_linear(file: TfliteFile, op: ir.Op) -> None:
    file.operator(
        "FULLY_CONNECTED",
        op.inputs,
        op.output,
        "FullyConnectedOptions",
        (1, 4),
        fusedActivationFunction=file.activation(op),
    )


def _onnx_constants(file: OnnxFile, op: ir.Op, *axes: int) -> None:
    weight, bias = op.inputs[1:]
    file.constant(weight, file.graph.constant(weight).transpose(axes))
    file.constant(bias, file.graph.constant(bias))


def _onnx_conv2d(file: OnnxFile, op: ir.Op) -> None:
    _onnx_constants(file, op, 0, 3, 1, 2)
    file.rescaled(op, op.output, _CONV, dilations=op.sliding.dilation, **sliding(op))


def _onnx_grouped(axes: Sequence[int], file: OnnxFile, op: ir.Op) -> None:
    _onnx_constants(file, op, *axes)
    groups = groups_of(file.graph, op)
    dilations = op.sliding.dilation
    file.rescaled(op, op.output, _CONV, group=groups, dilations=dilations, **sliding(op))


def _onnx_linear(file: OnnxFile, op: ir.Op) -> None:
    _onnx_constants(file, op, 0, 1)
    file.rescaled(op, op.output, _LINEAR, transB=1)


def sliding(op: ir.Op) -> dict[str, Any]:
    """Return a window as attributes of ONNX."""
    top, bottom, left, right = op.sliding.padding
    return {
        "kernel_shape": op.sliding.kernel,
        "strides": op.sliding.stride,
        "pads": (top, left, bottom, right),
    }


SPECS = (
    IntegerSpec(
        "conv2d",
        partial(_weighted, _conv2d, "products"),
        _no_links,
        tflite=_tflite_conv2d,
        onnx=_onnx_conv2d,
        c99=lambda c, op: c.weighted(op),
        fpga=lambda engine, op: engine.weighted(op),
    ),
    IntegerSpec(
        "depthwise_conv2d",
        partial(_weighted, _depthwise, "channels"),
        _grouped_links,
        tflite=_tflite_depthwise,
        onnx=partial(_onnx_grouped, (3, 0, 1, 2)),
        c99=lambda c, op: c.weighted(op),
        fpga=lambda engine, op: engine.weighted(op),
    ),
    IntegerSpec(
        "grouped_conv2d",
        partial(_weighted, _grouped, "channels"),
        _grouped_links,
        tflite=_tflite_conv2d,
        onnx=partial(_onnx_grouped, (0, 3, 1, 2)),
        c99=lambda c, op: c.weighted(op),
        fpga=lambda engine, op: engine.weighted(op),
    ),
    IntegerSpec(
        "linear",
        partial(_weighted, _linear, "products"),
        _no_links,
        tflite=_tflite_linear,
        onnx=_onnx_linear,
        c99=lambda c, op: c.linear(op),
        fpga=lambda engine, op: engine.weighted(op),
    ),
)
