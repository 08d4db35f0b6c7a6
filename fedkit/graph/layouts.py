"""Shapes of models, which are NCHW, and of the graph, which is NHWC.

A series of a model, [n, channels, length], is a map of height 1 in the graph, [n, 1, length,
channels]: what is said of maps holds for it.
"""

from __future__ import annotations

from fedkit.graph import ir
from fedkit.graph.operands import Unsupported

RANKS = (2, 3, 4)
"""Of values of models: [n, features], [n, channels, length], [n, channels, height, width]."""

SERIES = 3
"""Rank of a series."""


def nhwc(shape: ir.Shape) -> ir.Shape:
    """Return [n, c, h, w] as [n, h, w, c]."""
    n, c, h, w = shape
    return n, h, w, c


def graph_shape(shape: ir.Shape) -> ir.Shape:
    """Return the shape that a value of an NCHW model has in the graph."""
    if len(shape) == 2:
        return shape
    if len(shape) not in RANKS:
        raise Unsupported(
            f"a value of shape {shape}; only [n, c, h, w], [n, c, length] and [n, features] exist "
            f"here"
        )
    return nhwc(as_map(shape))


def as_map(shape: ir.Shape) -> ir.Shape:
    """Return [n, c, length] as [n, c, 1, length]; others stay as they are."""
    return (*shape[:2], 1, shape[2]) if len(shape) == SERIES else shape


def model_shape(shape: ir.Shape, rank: int) -> ir.Shape:
    """Return the shape that one example of a value of the graph has in an NCHW model.

    Args:
        shape: In the graph.
        rank: How many dimensions the model gives it, that of the examples included.
    """
    whole = (shape[3], shape[1], shape[2]) if len(shape) == 4 else shape[1:]
    return (whole[0], whole[2]) if rank == SERIES else whole


def map_axis(axis: int, rank: int) -> int:
    """Return which dimension of [n, c, h, w] one of a model's value of that rank is."""
    axis %= rank
    return 3 if rank == SERIES and axis == 2 else axis


def order_is_free(shape: ir.Shape) -> bool:
    """Whether NHWC and NCHW put the elements in the same order."""
    return len(shape) != 4 or shape[1] * shape[2] == 1 or shape[3] == 1
