"""Turn a BatchNorm that nothing could absorb into a depthwise 1x1 convolution."""

from __future__ import annotations

import numpy as np

from fedkit.core.errors import ExportError
from fedkit.graph import ir


def match(graph: ir.Graph) -> ir.Op | None:
    """Find a BatchNorm."""
    return next((op for op in graph.ops if op.kind == "affine"), None)


def transform(graph: ir.Graph, norm: ir.Op) -> ir.Graph:
    """Replace the BatchNorm; its scale becomes the weights, its shift the bias.

    Raises:
        ExportError: The BatchNorm works on [n, features], where no target has such an op.
    """
    name, scale, shift = norm.inputs
    if len(graph.tensors[name].shape) != 4:
        raise ExportError(
            f"BatchNorm {norm.source!r} works on {graph.tensors[name].shape} and does not directly "
            f"follow a convolution or linear layer that nothing else reads; move it behind one"
        )
    data = np.ascontiguousarray(graph.constant(scale).reshape(1, 1, 1, -1))
    weight = ir.Tensor(f"{norm.output}.weight", data.shape, "float32", data)
    conv = ir.Op(
        "depthwise_conv2d",
        (name, weight.name, shift),
        norm.outputs,
        ir.Window(),
        source=norm.source,
    )
    return graph.rewrite((norm,), (conv,), (weight,))
