"""Shapes of models, which are NCHW, and of the graph, which is NHWC."""

from __future__ import annotations

from fedkit.graph import ir
from fedkit.graph.operands import Unsupported


def nhwc(shape: ir.Shape) -> ir.Shape:
    """Return [n, c, h, w] as [n, h, w, c]."""
    n, c, h, w = shape
    return n, h, w, c


def graph_shape(shape: ir.Shape) -> ir.Shape:
    """Return the shape that a value of an NCHW model has in the graph."""
    if len(shape) == 4:
        return nhwc(shape)
    if len(shape) == 2:
        return shape
    raise Unsupported(f"a value of shape {shape}; only [n, c, h, w] and [n, features] exist here")


def model_shape(shape: ir.Shape) -> ir.Shape:
    """Return the shape that one example of a value of the graph has in an NCHW model."""
    return (shape[3], shape[1], shape[2]) if len(shape) == 4 else shape[1:]


def order_is_free(shape: ir.Shape) -> bool:
    """Whether NHWC and NCHW put the elements in the same order."""
    return len(shape) != 4 or shape[1] * shape[2] == 1 or shape[3] == 1
