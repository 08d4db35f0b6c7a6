"""Windows that choose or average within a channel."""

from __future__ import annotations

from functools import partial

import numpy as np

from fedkit.graph import ir
from fedkit.graph.ops.weighted import total
from fedkit.graph.spec import Random, Real, Spec, a_map, window_graph, window_shape
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


def _spec(kind: ir.Kind, layer: str, real: Real) -> Spec:
    return Spec(
        kind,
        layer,
        real,
        partial(_example, kind),
        shape=window_shape,
        has_window=True,
        scale="kept",
    )


SPECS = (
    _spec("avg_pool2d", "average pooling", _avg_pool2d),
    _spec("max_pool2d", "max pooling", _max_pool2d),
)
