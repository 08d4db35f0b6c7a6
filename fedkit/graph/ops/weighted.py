"""Convolutions and linear layers: an activation, its weights and a bias per output channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from fedkit.graph import ir
from fedkit.graph.spec import (
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
        only_trains=True,
    ),
)
