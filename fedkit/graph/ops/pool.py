"""Windows that choose or average within a channel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fedkit.graph import ir, sliding
from fedkit.graph.operands import activation, require, require_small
from fedkit.graph.ops.reduce import LARGEST, LARGEST_ONNX, MEANS, MEANS_ONNX
from fedkit.graph.ops.weighted import total
from fedkit.graph.places import take
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
    ends_beyond: bool,
) -> ir.Tensor:
    """Add an average pooling; padding that counts becomes an op of its own.

    Args:
        reader: What reads the model.
        node: The pooling.
        x: What it reads.
        window: Without padding.
        before: Padding at (top, left).
        counts_padding: Whether zeros of the padding are averaged too.
        ends_beyond: Whether the last window may end beyond the padding; nothing there counts.
    """
    if ends_beyond and counts_padding:
        ends = "an average that counts padding, and whose last window ends beyond it (ceil_mode)"
        require(not any(before), ends)
        counts_padding = False
    out = reader.shape_of(node)
    padded = sliding.reaching(x, out, window, before)
    is_dilated, pads = window.dilation != (1, 1), any(padded.padding)
    require(not (is_dilated and counts_padding and pads), "a dilated average that counts padding")
    # Windows that differ are in no plan, and in few files: those that pad alike keep their form.
    if is_dilated or (pads and not counts_padding and (reader.trains or ends_beyond)):
        return _of_places(reader, node, "avg_pool2d", x, out, _read_places(x, out, window, before))
    if counts_padding and pads:
        pad = ir.Window(padding=padded.padding)
        shape = (1, *pad.output(x.shape[1], x.shape[2]), x.shape[3])
        x, padded = reader.op("pad", node, [x], shape, pad, suffix=".pad"), window
    return reader.op("avg_pool2d", node, [x], out, padded)


def _most(
    reader: ModelReader, node: Any, x: ir.Tensor, window: ir.Window, before: Sequence[int]
) -> ir.Tensor:
    out = reader.shape_of(node)
    is_odd = window.dilation != (1, 1) or (reader.trains and _ends_beyond(x, out, window, before))
    if is_odd:  # in no plan, and dilation in no file
        return _of_places(reader, node, "max_pool2d", x, out, _read_places(x, out, window, before))
    return reader.op("max_pool2d", node, [x], out, sliding.reaching(x, out, window, before))


def _ends_beyond(x: ir.Tensor, out: ir.Shape, window: ir.Window, before: Sequence[int]) -> bool:
    """Whether the last window ends beyond as much padding at the end as there is before."""
    top, left = before
    whole = replace(window, padding=(top, top, left, left))
    return whole.output(*x.shape[1:3]) != out[1:3]


Windows = Sequence[Sequence[int]]
"""Along an axis: the places that each step reads, in any order and number."""


def _of_places(
    reader: ModelReader,
    node: Any,
    kind: ir.Kind,
    x: ir.Tensor,
    out: ir.Shape,
    axes: Sequence[Windows],
) -> ir.Tensor:
    """Add a pooling over any places: they are taken side by side, for windows of one size.

    Args:
        reader: What reads the model.
        node: The pooling.
        kind: Of the pool. An average and a maximum stay the same where all of a window is repeated
            as often; a maximum where anything is.
        x: What is read.
        out: The shape of the result.
        axes: Of height and of width.
    """
    require(
        all(min(map(len, windows)) for windows in axes), f"{kind} with windows of padding alone"
    )
    rows, columns = (_of_one_size(kind, windows) for windows in axes)
    lists = {2: itertools.chain(*rows), 3: itertools.chain(*columns)}
    kernel = len(rows[0]), len(columns[0])
    require_small((1, len(rows) * kernel[0], len(columns) * kernel[1], x.shape[3]))
    taken = take(reader, node, x, lists, suffix=".taken")
    return reader.op(kind, node, [taken], out, ir.Window(kernel, kernel))


def _of_one_size(kind: ir.Kind, windows: Windows) -> list[list[int]]:
    sizes = {len(window) for window in windows}
    if kind == "max_pool2d":
        return [[*window, *[window[-1]] * (max(sizes) - len(window))] for window in windows]
    size = math.lcm(*sizes)
    return [[place for place in window for _ in range(size // len(window))] for window in windows]


def _read_places(
    x: ir.Tensor, out: ir.Shape, window: ir.Window, before: Sequence[int]
) -> list[Windows]:
    """Return what each step of a window reads along each axis; nothing of padding."""
    return [
        [
            [
                place
                for tap in range(window.kernel[axis])
                if 0 <= (place := first + tap * window.dilation[axis]) < x.shape[1 + axis]
            ]
            for first in range(-before[axis], out[1 + axis] * step - before[axis], step)
        ]
        for axis, step in enumerate(window.stride)
    ]


def _adaptive(x: ir.Tensor, out: ir.Shape) -> list[Windows]:
    """Return what each step reads of an axis that is shared out among so many, as torch does."""
    return [
        [range(i * size // steps, -(-(i + 1) * size // steps)) for i in range(steps)]
        for size, steps in zip(x.shape[1:3], out[1:3], strict=True)
    ]


def _read_avg(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x, kernel = activation(a["self"], 4), sliding.pair(a["kernel_size"])
    divisor = a.get("divisor_override")
    require(divisor in (None, math.prod(kernel)), f"avg_pool2d with divisor_override = {divisor}")
    window = ir.Window(kernel, sliding.pair(a["stride"] or kernel))
    before = sliding.pair(a["padding"])
    ends_beyond = _ends_beyond(x, reader.shape_of(node), window, before)
    return _average(reader, node, x, window, before, a["count_include_pad"], ends_beyond)


def _read_max(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x, kernel = activation(a["self"], 4), sliding.pair(a["kernel_size"])
    window = ir.Window(kernel, sliding.pair(a["stride"] or kernel), sliding.pair(a["dilation"]))
    return _most(reader, node, x, window, sliding.pair(a["padding"]))


def _read_adaptive_avg(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x, out = activation(a["self"], 4), reader.shape_of(node)
    if out[1:3] == (1, 1):
        return reader.op("mean", node, [x], out)
    return _of_places(reader, node, "avg_pool2d", x, out, _adaptive(x, out))


def _read_adaptive_max(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x = activation(a["self"], 4)
    out = (1, *a["output_size"], x.shape[3])
    return _of_places(reader, node, "max_pool2d", x, out, _adaptive(x, out))


def _windows_of(
    what: str, reader: ModelReader, node: OnnxNode
) -> tuple[ir.Window, tuple[int, int]]:
    """Return the window of a pooling and its padding; every step must meet the image."""
    x = activation(node.operand(0), 4).shape
    kernel, ceil = sliding.sizes(reader, node, "kernel_shape"), node.attribute("ceil_mode", 0)
    require(ceil in (0, 1), f"ceil_mode = {ceil}; 0 or 1 can be")
    window, before = sliding.of_onnx(reader, node, kernel)
    out = reader.shape_of(node)
    require(min(out[1:3]) > 0, f"{what} with a window that is larger than what it slides over")
    for axis in range(2):
        last = (out[1 + axis] - 1) * window.stride[axis] - before[axis]
        meets = before[axis] < window.kernel[axis] and last < x[1 + axis]
        require(meets, f"{what} with windows of padding alone")
    return window, before


def _read_average_pool(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    window, before = _windows_of("AveragePool", reader, node)
    counts, ends_beyond = (bool(node.attribute(n, 0)) for n in ("count_include_pad", "ceil_mode"))
    x = activation(node.operand(0), 4)
    return _average(reader, node, x, window, before, counts, ends_beyond)


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
