"""Turn a BatchNorm that nothing could absorb into a depthwise 1x1 convolution."""

from __future__ import annotations

import numpy as np

from fedkit.graph import ir


def match(graph: ir.Graph) -> ir.Op | None:
    """Find a BatchNorm."""
    return next((op for op in graph.ops if op.kind == "affine"), None)


def transform(graph: ir.Graph, norm: ir.Op) -> ir.Graph:
    """Replace the BatchNorm; its scale becomes the weights, its shift the bias.

    Features become one pixel before it, and features again behind it.
    """
    name, scale, shift = norm.inputs
    data = np.ascontiguousarray(graph.constant(scale).reshape(1, 1, 1, -1))
    weight = ir.Tensor(f"{norm.output}.weight", data.shape, "float32", data)
    shape = graph.tensors[name].shape
    if len(shape) == 4:
        return graph.rewrite((norm,), (_scaled(norm, name, weight, shift, norm.output),), (weight,))
    pixel, made = (
        ir.Tensor(ir.unused_name(f"{norm.output}.{what}", graph.tensors), (1, 1, 1, shape[1]))
        for what in ("pixel", "scaled")
    )
    ops = (
        ir.Op("reshape", (name,), (pixel.name,), source=norm.source),
        _scaled(norm, pixel.name, weight, shift, made.name),
        ir.Op("reshape", (made.name,), norm.outputs, source=norm.source),
    )
    return graph.rewrite((norm,), ops, (weight, pixel, made))


def _scaled(norm: ir.Op, x: str, weight: ir.Tensor, shift: str, output: str) -> ir.Op:
    inputs = x, weight.name, shift
    return ir.Op("depthwise_conv2d", inputs, (output,), ir.Window(), source=norm.source)
