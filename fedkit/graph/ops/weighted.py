"""Convolutions and linear layers: an activation, its weights and a bias per output channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fedkit.graph import ir, sliding
from fedkit.graph.operands import activation, constant, integers, rank_of, require, vector
from fedkit.graph.operands import weights as weights_of
from fedkit.graph.spec import (
    Aten,
    ModelReader,
    Onnx,
    OnnxNode,
    Random,
    Real,
    Spec,
    Weights,
    a_map,
    an_activation,
    graph_of,
    window_shape,
)
from fedkit.graph.taps import taps

FloatArray = ir.FloatArray


def _conv2d(op: ir.Op, graph: ir.Graph, x: FloatArray, w: FloatArray, b: FloatArray) -> FloatArray:
    parts = (tap @ w[:, i, j].T for i, j, tap in taps(x, op.window))
    return total(parts) + b


def _depthwise(
    op: ir.Op, graph: ir.Graph, x: FloatArray, w: FloatArray, b: FloatArray
) -> FloatArray:
    x = np.repeat(x, w.shape[3] // x.shape[3], axis=3)
    return total(tap * w[0, i, j] for i, j, tap in taps(x, op.window)) + b


def _grouped(op: ir.Op, graph: ir.Graph, x: FloatArray, w: FloatArray, b: FloatArray) -> FloatArray:
    groups = x.shape[3] // w.shape[3]
    parts = (
        _conv2d(op, graph, part, weight, np.zeros(1, np.float32))
        for part, weight in zip(np.split(x, groups, 3), np.split(w, groups, 0), strict=True)
    )
    return np.concatenate(list(parts), 3) + b


def _linear(op: ir.Op, graph: ir.Graph, x: FloatArray, w: FloatArray, b: FloatArray) -> FloatArray:
    return x @ w.T + b


def total(parts: Iterator[FloatArray]) -> FloatArray:
    """Return the sum of arrays of their own, in order."""
    found = next(parts)
    for part in parts:
        found += part
    return found


def _shape(weights: Weights, graph: ir.Graph, op: ir.Op) -> ir.Shape:
    channels = graph.tensors[op.inputs[1]].shape[weights.axis]
    return (*window_shape(graph, op)[:-1], channels) if op.window else (1, channels)


def _operands(weights: Weights, op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    channels, out = shapes[0][-1], shapes[1][weights.axis]
    kernel = op.window.kernel if op.window else ()
    return [weights.shape(channels, out, kernel), (out,)]


# Readers: weights are [out, in per group, kernel height, kernel width] there, of a convolution over
# series [out, in per group, kernel length].


def _convolution(
    reader: ModelReader,
    node: Any,
    x: ir.Tensor,
    weight: Any,
    bias: Any,
    groups: int,
    window: ir.Window,
    before: Sequence[int],
) -> ir.Tensor:
    """Add a convolution, whose window is padded by `before` at (top, left)."""
    cin, out = x.shape[3], reader.shape_of(node)
    kind: ir.Kind = "conv2d" if groups == 1 else "depthwise_conv2d"
    if groups not in (1, cin):
        require(reader.trains, f"conv2d with {groups} groups; 1 or one per channel can be")
        kind = "grouped_conv2d"
    order = (1, 2, 3, 0) if kind == "depthwise_conv2d" else (0, 2, 3, 1)
    operands = _operands_of(reader, node, x, weight, bias, order)
    return reader.op(kind, node, operands, out, sliding.reaching(x, out, window, before))


def _operands_of(
    reader: ModelReader, node: Any, x: ir.Tensor, weight: Any, bias: Any, order: Sequence[int]
) -> list[ir.Tensor]:
    """Return an activation, its weights with their axes in that order, and a bias."""
    laid = np.transpose(ir.as_maps(constant(weight)), order)
    shift = np.zeros(reader.shape_of(node)[-1]) if bias is None else constant(bias, "biases")
    return [
        x,
        reader.constant(node, "weight", laid, weight),
        reader.constant(node, "bias", shift, bias),
    ]


def _kernel(shape: Sequence[int]) -> tuple[int, int]:
    """Return height and width of the kernels of weights, those of a series of height 1."""
    sizes = (1, *map(int, shape[2:]))
    return sizes[-2], sizes[-1]


def _read_conv2d(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x, weight = activation(a["input"], 4), a["weight"]
    kernel = _kernel(weight.shape)
    window = ir.Window(kernel, sliding.pair(a["stride"]), sliding.pair(a["dilation"]))
    before = (0, 0) if a["padding"] == "valid" else a["padding"]
    if a["padding"] == "same":
        before = ir.same_padding(x.shape[1:3], reader.shape_of(node)[1:3], window)[::2]
    before = sliding.pair(before)
    return _convolution(reader, node, x, weight, a["bias"], a["groups"], window, before)


def _read_conv(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    x, rank = activation(node.operand(0), 4), rank_of(reader, node)
    weight = weights_of(node, 1, rank)
    groups, own = int(node.attribute("group", 1)), weight.shape[2:]
    given = integers(node, "kernel_shape", rank - 2, 0)
    require(given in ((0,) * len(own), own), f"kernel_shape = {given}, but the weights are {own}")
    fits = weight.shape[1] * groups == x.shape[3] and weight.shape[0] % max(1, groups) == 0
    require(fits, f"weights {weight.shape} in {groups} group(s) for {x.shape[3]} channels")
    window, before = sliding.of_onnx(reader, node, _kernel(weight.shape))
    bias = vector(node, 2, len(weight))
    return _convolution(reader, node, x, weight, bias, groups, window, before)


def _read_linear(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x = activation(a["input"], 2)
    operands = _operands_of(reader, node, x, a["weight"], a["bias"], (0, 1))
    return reader.op("linear", node, operands)


def _read_gemm(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    x, weight = activation(node.operand(0), 2), weights_of(node, 1, 2)
    require(not node.attribute("transA", 0), "Gemm with transA, which turns the batch dimension")
    weight = weight if node.attribute("transB", 0) else weight.T
    weight = weight * np.float32(node.attribute("alpha", 1.0))
    bias = node.operand(2)
    if bias is not None:
        bias = constant(bias, "biases") * np.float32(node.attribute("beta", 1.0))
        fits = bias.size in (1, len(weight)) and bias.shape[-1:] in ((), (1,), (bias.size,))
        require(fits, f"a bias of shape {bias.shape} for {len(weight)} outputs")
        bias = np.broadcast_to(bias.reshape(-1), len(weight))
    return _product(reader, node, x, weight, bias)


def _read_matmul(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    return _product(reader, node, activation(node.operand(0), 2), weights_of(node, 1, 2).T, None)


def _product(
    reader: ModelReader, node: OnnxNode, x: ir.Tensor, weight: ir.Array, bias: ir.Array | None
) -> ir.Tensor:
    fits = weight.shape[1] == x.shape[1]
    require(fits, f"weights for {weight.shape[1]} features; there are {x.shape[1]}")
    return reader.op("linear", node, _operands_of(reader, node, x, weight, bias, (0, 1)))


_CONV_ATEN: dict[str, Aten] = {
    f"aten.{name}.{how}": of(_read_conv2d)
    for name, of in (("conv2d", sliding.maps), ("conv1d", sliding.series))
    for how in ("default", "padding")
}
_CONV_ONNX: dict[str, Onnx] = {"Conv": _read_conv}
_LINEAR_ATEN: dict[str, Aten] = {"aten.linear.default": _read_linear}
_LINEAR_ONNX: dict[str, Onnx] = {"Gemm": _read_gemm, "MatMul": _read_matmul}


def _grouped_shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    return (*window_shape(graph, op)[:-1], graph.tensors[op.inputs[1]].shape[0])


def _grouped_operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    (out, *_, of_group), kernel = shapes[1], op.sliding.kernel
    groups = max(1, shapes[0][3] // max(1, of_group))
    fits = shapes[0][3] == groups * of_group and out % groups == 0
    return [(out, *kernel, of_group if fits else shapes[0][3]), (out,)]


def _grouped_example(random: Random) -> ir.Graph:
    groups, of_group, outs = (int(size) for size in random.integers(2, 4, 3))
    height, width = (int(size) for size in random.integers(3, 8, 2))
    shape, kernel, out = (1, height, width, groups * of_group), (3, 2), groups * outs
    constants = random.standard_normal((out, *kernel, of_group)), random.standard_normal(out)
    window = ir.Window(kernel, (1, 2))
    end = (1, *window.output(height, width), out)
    op = ir.Op("grouped_conv2d", ("x", "c0", "c1"), ("y",), window)
    return graph_of((shape, end), constants, op)


def _conv_example(kind: ir.Kind, weights: Weights, random: Random) -> ir.Graph:
    kernel = (3, 3) if random.random() < 0.5 else (1, int(random.integers(1, 4)))
    stride, dilation = ((2, 1), (1, 2), (1, 1))[int(random.integers(3))]
    most = 3 if random.random() < 0.6 else 1
    top, bottom, left, right = (int(size) for size in random.integers(0, most, 4))
    padding = (top, bottom, left, right)
    window = ir.Window(kernel, (stride, stride), (dilation, dilation), padding)
    shape = a_map(random, least=5)
    out = int(random.integers(1, 9)) * (1 if weights.mixes else shape[3])
    end = (1, *window.output(shape[1], shape[2]), out)
    return _example(kind, weights, random, shape, end, window)


def _linear_example(kind: ir.Kind, weights: Weights, random: Random) -> ir.Graph:
    features, out = (int(size) for size in random.integers(1, 40, 2))
    return _example(kind, weights, random, (1, features), (1, out), None)


def _example(
    kind: ir.Kind,
    weights: Weights,
    random: Random,
    shape: ir.Shape,
    end: ir.Shape,
    window: ir.Window | None,
) -> ir.Graph:
    of_weight = weights.shape(shape[-1], end[-1], window.kernel if window else ())
    kept = random.random(of_weight) < random.choice([0.2, 1.0])
    constants = kept * random.standard_normal(of_weight), random.standard_normal(end[-1])
    op = ir.Op(kind, ("x", "c0", "c1"), ("y",), window, an_activation(random))
    return graph_of((shape, end), constants, op)


def _spec(
    kind: ir.Kind,
    layer: str,
    real: Real,
    example: Callable[[ir.Kind, Weights, Random], ir.Graph],
    mixes: bool,
) -> Spec:
    weights = Weights(mixes)
    return Spec(
        kind,
        layer,
        real,
        partial(example, kind, weights),
        constants=2,
        shape=partial(_shape, weights),
        operands=partial(_operands, weights),
        has_window=kind != "linear",
        fuses_activation=True,
        weights=weights,
        aten=_LINEAR_ATEN if kind == "linear" else _CONV_ATEN,
        onnx=_LINEAR_ONNX if kind == "linear" else _CONV_ONNX,
    )


SPECS = (
    _spec("conv2d", "conv2d", _conv2d, _conv_example, mixes=True),
    _spec("depthwise_conv2d", "conv2d", _depthwise, _conv_example, mixes=False),
    _spec("linear", "linear", _linear, _linear_example, mixes=True),
    Spec(
        "grouped_conv2d",
        "grouped conv2d",
        _grouped,
        _grouped_example,
        constants=2,
        shape=_grouped_shape,
        operands=_grouped_operands,
        has_window=True,
        aten=_CONV_ATEN,
        only_trains=True,
    ),
)
