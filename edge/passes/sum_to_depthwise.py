"""Turn a sum over windows into a depthwise convolution of ones, which every target has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedkit.graph import ir


def match(graph: ir.Graph) -> ir.Op | None:
    """Find a sum over windows."""
    return next((op for op in graph.ops if op.kind == "sum_pool2d"), None)


def transform(graph: ir.Graph, summed: ir.Op) -> ir.Graph:
    """Replace the sum; its weights are ones, and its biases zeros."""
    channels = graph.tensors[summed.output].shape[-1]
    ones = np.ones((1, *summed.sliding.kernel, channels), np.float32)
    weight = ir.Tensor(f"{summed.output}.ones", ones.shape, "float32", ones)
    zeros = np.zeros(channels, np.float32)
    bias = ir.Tensor(f"{summed.output}.zeros", zeros.shape, "float32", zeros)
    inputs = summed.inputs[0], weight.name, bias.name
    made = replace(summed, kind="depthwise_conv2d", inputs=inputs)
    return graph.rewrite((summed,), (made,), (weight, bias))
