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
from fedkit.graph.tokens import channels_as_last, last_as_channels, product_of

FloatArray = ir.FloatArray


def _conv2d(op: ir.Op, graph: ir.Graph, x: FloatArray, w: FloatArray, b: FloatArray) -> FloatArray:
    parts = (_by_rows(tap, w[:, i, j]) for i, j, tap in taps(x, op.window))
    return total(parts) + b


def _by_rows(tap: FloatArray, rows: FloatArray) -> FloatArray:
    """Return [n, h, w, out]; of single pixels by one product of matrices, not one for each."""
    if tap.shape[1:3] == (1, 1):
        return np.asarray((tap[:, 0, 0] @ rows.T)[:, None, None], np.float32)
    return np.asarray(tap @ rows.T, np.float32)


def _depthwise(
    op: ir.Op, graph: ir.Graph, x: FloatArray, w: FloatArray, b: FloatArray
) -> FloatArray:
    x = np.repeat(x, w.shape[3] // x.shape[3], axis=3)
    return total(tap * w[0, i, j] for i, j, tap in taps(x, op.window)) + b


def _grouped(op: ir.Op, graph: ir.Graph, x: FloatArray, w: FloatArray, b: FloatArray) -> FloatArray:
    groups = x.shape[3] // w.shape[3]
    pairs = zip(np.split(x, groups, 3), np.split(w, groups, 0), strict=True)
    zero = np.zeros(1, np.float32)
    return np.concatenate([_conv2d(op, graph, *pair, zero) for pair in pairs], 3) + b


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
    kernel = op.window.kernel if op.window else ()
    expected = weights.shape(shapes[0][-1], shapes[1], kernel)
    return [expected, (expected[weights.axis],)]


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
    kind: ir.Kind = {cin: "depthwise_conv2d", 1: "conv2d"}.get(groups, "grouped_conv2d")
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
    return _product(reader, node, a["input"], a["weight"], a["bias"])


def read_matmul_aten(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    """Read a product of matrices, of which the second may be a constant [in, out]."""
    right = a["other" if "other" in a else "mat2"]
    if isinstance(right, ir.Tensor):
        require("mat1" not in a, "a sum with a product of activations; add it apart")
        return product_of(reader, node, a["self"], right)
    weight = np.asarray(constant(right))
    require(weight.ndim == 2, f"a product with a constant {weight.shape}; [in, out] can be")
    factors = a.get("alpha", 1), a.get("beta", 1)
    require(factors == (1, 1), f"a product with alpha, beta = {factors}; 1 can be")
    x, bias = a["mat1" if "mat1" in a else "self"], a["self"] if "mat1" in a else None
    return _product(reader, node, x, weight.T, bias)


def _read_gemm(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    weight = weights_of(node, 1, 2)
    require(not node.attribute("transA", 0), "Gemm with transA, which turns the batch dimension")
    weight = weight if node.attribute("transB", 0) else weight.T
    weight = weight * np.float32(node.attribute("alpha", 1.0))
    bias = node.operand(2)
    if bias is not None:
        bias = constant(bias, "biases") * np.float32(node.attribute("beta", 1.0))
        fits = bias.size in (1, len(weight)) and bias.shape[-1:] in ((), (1,), (bias.size,))
        require(fits, f"a bias of shape {bias.shape} for {len(weight)} outputs")
        bias = np.broadcast_to(bias.reshape(-1), len(weight))
    return _product(reader, node, activation(node.operand(0), 2), weight, bias)


def read_matmul_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    """Read a product of matrices, of which the second may be a constant [in, out]."""
    if isinstance(right := node.operand(1), ir.Tensor):
        return product_of(reader, node, node.operand(0), right)
    return _product(reader, node, node.operand(0), weights_of(node, 1, 2).T, None)


def _product(reader: ModelReader, node: Any, value: Any, weight: Any, bias: Any) -> ir.Tensor:
    """Add a layer over the last axis of a value, whose weights are [out, in]."""
    x, matrix = last_as_channels(reader, node, activation(value)), constant(weight)
    out, features = matrix.shape
    fits = features == x.shape[-1]
    require(fits, f"weights for {features} features; there are {x.shape[-1]}")
    is_flat = len(x.shape) == 2
    shift = np.zeros(out) if bias is None else constant(bias, "biases")
    operands = [
        x,
        reader.constant(node, "weight", matrix if is_flat else matrix[:, None, None], weight),
        reader.constant(node, "bias", shift, bias),
    ]
    if is_flat:
        return reader.op("linear", node, operands)
    shape = (*x.shape[:3], out)
    made = reader.op("conv2d", node, operands, shape, ir.Window(), ".of_tokens")
    return channels_as_last(reader, node, made)


_CONV_ATEN: dict[str, Aten] = {
    f"aten.{name}.{how}": of(_read_conv2d)
    for name, of in (("conv2d", sliding.maps), ("conv1d", sliding.series))
    for how in ("default", "padding")
}
_CONV_ONNX: dict[str, Onnx] = {"Conv": _read_conv}
_LINEAR_ATEN: dict[str, Aten] = {
    "aten.linear.default": _read_linear,
    **dict.fromkeys(
        ("aten.matmul.default", "aten.mm.default", "aten.addmm.default"), read_matmul_aten
    ),
}
_LINEAR_ONNX: dict[str, Onnx] = {"Gemm": _read_gemm, "MatMul": read_matmul_onnx}


_ATEN: Mapping[ir.Kind, Mapping[str, Aten]] = {
    **dict.fromkeys(("depthwise_conv2d", "grouped_conv2d"), _CONV_ATEN),
    "conv2d": {**_CONV_ATEN, **_LINEAR_ATEN},
    "linear": _LINEAR_ATEN,
}
_ONNX: Mapping[ir.Kind, Mapping[str, Onnx]] = {
    **dict.fromkeys(("depthwise_conv2d", "grouped_conv2d"), _CONV_ONNX),
    "conv2d": {**_CONV_ONNX, **_LINEAR_ONNX},
    "linear": _LINEAR_ONNX,
}
"""Over more than features a linear layer is a convolution of one pixel."""


def _conv_example(kind: ir.Kind, random: Random) -> ir.Graph:
    kernel = (3, 3) if random.random() < 0.5 else (1, int(random.integers(1, 4)))
    stride, dilation = ((2, 1), (1, 2), (1, 1))[int(random.integers(3))]
    most = 3 if random.random() < 0.6 else 1
    top, bottom, left, right = (int(size) for size in random.integers(0, most, 4))
    padding = (top, bottom, left, right)
    window = ir.Window(kernel, (stride, stride), (dilation, dilation), padding)
    shape = a_map(random, least=5)
    out = int(random.integers(1, 9))
    if kind == "depthwise_conv2d":
        weights: ir.Shape = (1, *kernel, out * shape[3])
    elif kind == "grouped_conv2d":
        groups, of_group = (int(size) for size in random.integers(2, 5, 2))
        shape = (*shape[:3], groups * of_group)
        weights = (groups * int(random.integers(1, 5)), *kernel, of_group)
    else:
        weights = (out, *kernel, shape[3])
    return _example(kind, random, shape, weights, window)


def _linear_example(kind: ir.Kind, random: Random) -> ir.Graph:
    features, out = (int(size) for size in random.integers(1, 40, 2))
    return _example(kind, random, (1, features), (out, features), None)


def _example(
    kind: ir.Kind, random: Random, shape: ir.Shape, of_weight: ir.Shape, window: ir.Window | None
) -> ir.Graph:
    out = of_weight[3 if kind == "depthwise_conv2d" else 0]
    end = (1, *window.output(shape[1], shape[2]), out) if window else (1, out)
    kept = random.random(of_weight) < random.choice([0.2, 1.0])
    constants = kept * random.standard_normal(of_weight), random.standard_normal(out)
    op = ir.Op(kind, ("x", "c0", "c1"), ("y",), window, an_activation(random))
    return graph_of((shape, end), constants, op)


def _spec(
    kind: ir.Kind,
    layer: str,
    real: Real,
    example: Callable[[ir.Kind, Random], ir.Graph],
    weights: Weights,
) -> Spec:
    return Spec(
        kind,
        layer,
        real,
        partial(example, kind),
        constants=2,
        shape=partial(_shape, weights),
        operands=partial(_operands, weights),
        has_window=kind != "linear",
        fuses_activation=True,
        weights=weights,
        aten=_ATEN[kind],
        onnx=_ONNX[kind],
    )


SPECS = (
    _spec("conv2d", "conv2d", _conv2d, _conv_example, Weights(0, mixes=True)),
    _spec("depthwise_conv2d", "conv2d", _depthwise, _conv_example, Weights(3)),
    _spec("linear", "linear", _linear, _linear_example, Weights(0, mixes=True)),
    _spec("grouped_conv2d", "conv2d", _grouped, _conv_example, Weights(0)),
)
