"""Windows that choose or average within a channel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fedkit.graph import ir, sliding
from fedkit.graph.operands import activation, require
from fedkit.graph.ops.reduce import LARGEST, LARGEST_ONNX, MEANS, MEANS_ONNX
from fedkit.graph.ops.weighted import total
from fedkit.graph.spec import (
    Aten,
    ModelReader,
    Onnx,
    OnnxNode,
    Random,
    Real,
    Spec,
    a_map,
    window_graph,
    window_shape,
)
from fedkit.graph.taps import taps


def _avg_pool2d(op: ir.Op, graph: ir.Graph, x: ir.FloatArray) -> ir.FloatArray:
    """Average without what is padded."""
    sums = total(tap.copy() for _, _, tap in taps(x, op.window))
    ones = np.ones((1, *x.shape[1:3], 1), np.float32)
    return sums / total(tap.copy() for _, _, tap in taps(ones, op.window))


def _max_pool2d(op: ir.Op, graph: ir.Graph, x: ir.FloatArray) -> ir.FloatArray:
    windows = taps(x, op.window, fill=-np.inf)
    result = next(windows)[2]
    for _, _, tap in windows:
        result = np.maximum(result, tap)
    return result


def _example(kind: ir.Kind, random: Random) -> ir.Graph:
    shape = a_map(random, least=3)
    how, is_average = random.random(), kind == "avg_pool2d"
    if how < 0.2 and is_average:  # for which runtimes have kernels of their own
        window = ir.Window((shape[1], shape[2]))
    elif how < 0.5 and is_average:
        window = ir.Window((3, 3), padding=(1, 1, 1, 1))
    else:
        high, wide = (int(size) for size in random.integers(1, 4, 2))
        stride = int(random.integers(1, 3)), int(random.integers(1, 3))
        top, bottom, left, right = (int(n) for n in random.integers(0, (high, high, wide, wide)))
        # Averages of less at one side of a border are not in all formats.
        padding = (0, 0, 0, 0) if is_average else (top, bottom, left, right)
        window = ir.Window((high, wide), stride, padding=padding)
    return window_graph(random, kind, window, shape)


# Readers


def _average(
    reader: ModelReader,
    node: Any,
    x: ir.Tensor,
    window: ir.Window,
    before: Sequence[int],
    counts_padding: bool,
) -> ir.Tensor:
    """Add an average pooling; padding that counts becomes an op of its own."""
    out = reader.shape_of(node)
    padded = sliding.reaching(x, out, window, before)
    if counts_padding and any(padded.padding):
        pad = ir.Window(padding=padded.padding)
        shape = (1, *pad.output(x.shape[1], x.shape[2]), x.shape[3])
        x, padded = reader.op("pad", node, [x], shape, pad, suffix=".pad"), window
    return reader.op("avg_pool2d", node, [x], out, padded)


def _most(
    reader: ModelReader, node: Any, x: ir.Tensor, window: ir.Window, before: Sequence[int]
) -> ir.Tensor:
    dilation = window.dilation
    require(dilation == (1, 1), f"max_pool2d with dilation {dilation}; 1 can be")
    out = reader.shape_of(node)
    return reader.op("max_pool2d", node, [x], out, sliding.reaching(x, out, window, before))


def _read_avg(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x, kernel = activation(a["self"], 4), sliding.pair(a["kernel_size"])
    require(not a["ceil_mode"], "avg_pool2d with ceil_mode")
    divisor = a.get("divisor_override")
    require(divisor in (None, math.prod(kernel)), f"avg_pool2d with divisor_override = {divisor}")
    window, before = ir.Window(kernel, sliding.pair(a["stride"] or kernel)), a["padding"]
    return _average(reader, node, x, window, sliding.pair(before), a["count_include_pad"])


def _read_max(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x, kernel = activation(a["self"], 4), sliding.pair(a["kernel_size"])
    window = ir.Window(kernel, sliding.pair(a["stride"] or kernel), sliding.pair(a["dilation"]))
    return _most(reader, node, x, window, sliding.pair(a["padding"]))


def _read_adaptive_avg(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x, out = activation(a["self"], 4), reader.shape_of(node)
    if out[1:3] == (1, 1):
        return reader.op("mean", node, [x], out)
    divides = x.shape[1] % out[1] == 0 and x.shape[2] % out[2] == 0
    require(divides, f"adaptive pooling of {x.shape[1:3]} to {out[1:3]}, which does not divide it")
    kernel = (x.shape[1] // out[1], x.shape[2] // out[2])
    return reader.op("avg_pool2d", node, [x], out, ir.Window(kernel, kernel))


def _read_adaptive_max(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x, size = activation(a["self"], 4), list(a["output_size"])
    divides = x.shape[1] % size[0] == 0 and x.shape[2] % size[1] == 0
    require(divides, f"adaptive pooling of {x.shape[1:3]} to {size}, which does not divide it")
    kernel = (x.shape[1] // size[0], x.shape[2] // size[1])
    out = (1, size[0], size[1], x.shape[3])
    return reader.op("max_pool2d", node, [x], out, ir.Window(kernel, kernel))


def _windows_of(
    what: str, reader: ModelReader, node: OnnxNode
) -> tuple[ir.Window, tuple[int, int]]:
    """Return the window of a pooling and its padding; every step must meet the image."""
    x = activation(node.operand(0), 4).shape
    kernel, ceil = sliding.sizes(reader, node, "kernel_shape"), node.attribute("ceil_mode", 0)
    require(ceil in (0, 1), f"ceil_mode = {ceil}; 0 or 1 can be")
    window, before = sliding.of_onnx(reader, node, kernel)
    out = reader.shape_of(node)
    for axis in range(2):
        last = (out[1 + axis] - 1) * window.stride[axis] - before[axis]
        meets = before[axis] < window.kernel[axis] and last < x[1 + axis]
        require(meets, f"{what} with windows of padding alone")
    return window, before


def _read_average_pool(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    window, before = _windows_of("AveragePool", reader, node)
    require(not node.attribute("ceil_mode", 0), "AveragePool with ceil_mode")
    require(window.dilation == (1, 1), f"AveragePool with dilation {window.dilation}; 1 can be")
    counts = bool(node.attribute("count_include_pad", 0))
    return _average(reader, node, activation(node.operand(0), 4), window, before, counts)


def _read_max_pool(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    x = activation(node.operand(0), 4)
    return _most(reader, node, x, *_windows_of("MaxPool", reader, node))


def _of_both(reads: Mapping[str, Aten]) -> dict[str, Aten]:
    """Return what reads pools over maps, and those over series, by the names of ATen."""
    return {
        f"aten.{name}{form}.default": of(read)
        for name, read in reads.items()
        for form, of in (("2d", sliding.maps), ("1d", sliding.series))
    }


_AVERAGE = {
    **_of_both({"avg_pool": _read_avg, "adaptive_avg_pool": _read_adaptive_avg}),
    **MEANS,
}
_MOST = {**_of_both({"max_pool": _read_max, "adaptive_max_pool": _read_adaptive_max}), **LARGEST}


def _spec(
    kind: ir.Kind, layer: str, real: Real, aten: Mapping[str, Aten], onnx: Mapping[str, Onnx]
) -> Spec:
    return Spec(
        kind,
        layer,
        real,
        partial(_example, kind),
        shape=window_shape,
        has_window=True,
        scale="kept",
        aten=aten,
        onnx=onnx,
    )


SPECS = (
    _spec(
        "avg_pool2d",
        "average pooling",
        _avg_pool2d,
        _AVERAGE,
        {"AveragePool": _read_average_pool, **MEANS_ONNX},
    ),
    _spec(
        "max_pool2d",
        "max pooling",
        _max_pool2d,
        _MOST,
        {"MaxPool": _read_max_pool, **LARGEST_ONNX},
    ),
)
