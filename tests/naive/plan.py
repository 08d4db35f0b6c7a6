"""A slow, obvious reference for the engines that execute a plan, in torch and autograd."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fedkit.engine.plan.plan import Add, Conv, Copy, LayerNorm, Norm, Plan, Pool

Tensors = Mapping[str, Tensor]
K = math.sqrt(math.pi / 2)


def run(
    plan: Plan,
    weights: Tensors,
    stats: Tensors,
    inputs: Tensor,
    training: bool,
    taken: Mapping[int, Tensor] | None = None,
    norms_within: float = math.inf,
    convs_within: Mapping[int, float] | None = None,
) -> Tensor:
    """Return the logits [n, classes] for `inputs` [n, ...] of any floating dtype.

    Norms use the statistics of the batch in training and the running ones otherwise. `taken` are
    read values by tensor, from elsewhere: activations and maxima take the branches they tell. Norms
    give at most `norms_within` deviations, and a convolution reads at most what `convs_within`
    says for its number; both clip.
    """
    taken, convs_within = taken or {}, convs_within or {}
    n = len(inputs)
    raw = [torch.zeros((n, *tensor.shape), dtype=inputs.dtype) for tensor in plan.tensors]
    raw[0] = inputs.reshape(raw[0].shape)

    def read(index: int) -> Tensor:
        value, tensor = raw[index], plan.tensors[index]
        if tensor.norm is not None:
            value = normalise(tensor.norm, weights, stats, value, training, norms_within)
        if tensor.activation == "none":
            return value
        if index in taken:
            value = torch.where(taken[index] > 0, value, 0)
            return value if tensor.activation == "relu" else value.where(taken[index] < 6, 6)
        return F.relu(value) if tensor.activation == "relu" else F.relu6(value)

    for number, op in enumerate(plan.ops):
        shape = raw[op.target].shape
        if isinstance(op, Copy):
            part = read(op.source).reshape(n, -1, *shape[2:])
            raw[op.target][:, op.channel : op.channel + part.shape[1]] = part
        elif isinstance(op, Add):
            raw[op.target] = read(op.left) + read(op.right)
        elif isinstance(op, Conv):
            most = convs_within.get(number, math.inf)
            raw[op.target] = convolve(op, weights, read(op.source).clamp(-most, most))
        elif isinstance(op, LayerNorm):
            raw[op.target] = normalise_examples(op, weights, read(op.source))
        elif op.operation == "max" and op.source in taken:
            raw[op.target] = pick_largest(op, read(op.source), taken[op.source])
        elif op.operation == "max":
            raw[op.target] = F.max_pool2d(read(op.source), op.kernel, op.stride, op.padding)
        else:
            raw[op.target] = F.avg_pool2d(read(op.source), op.kernel, op.stride, op.padding)
        assert raw[op.target].shape == shape
    return read(plan.output).reshape(n, -1)


def pick_largest(op: Pool, x: Tensor, taken: Tensor) -> Tensor:
    """Return the values of x where `taken` is largest."""
    how = (op.kernel, op.stride, op.padding)
    indices = F.max_pool2d(taken, *how, return_indices=True)[1]
    return x.flatten(2).gather(2, indices.flatten(2)).reshape(indices.shape)


def convolve(op: Conv, weights: Tensors, x: Tensor) -> Tensor:
    weight = weights[op.weight]
    weight = weight.reshape(*weight.shape[:2], *op.kernel)
    bias = None if op.bias is None else weights[op.bias]
    return F.conv2d(x, weight, bias, op.stride, op.padding, op.dilation, op.groups)


def normalise(
    norm: Norm,
    weights: Tensors,
    stats: Tensors,
    x: Tensor,
    training: bool,
    within: float = math.inf,
) -> Tensor:
    mean, variance = (stats[name][:, None, None] for name in norm.stats)
    if training:
        mean = x.mean((0, 2, 3), keepdim=True)
    if norm.kind == "batch":
        if training:
            variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
        x = (x - mean) / (variance + norm.eps).sqrt()
    else:
        spread = variance.sqrt()
        if training:
            spread = K * (x - mean).abs().mean((0, 2, 3), keepdim=True)
        x = (x - mean) / (spread + norm.eps)
    x = x.clamp(-within, within)
    if norm.weight is not None:
        x = x * weights[norm.weight][:, None, None]
    return x if norm.bias is None else x + weights[norm.bias][:, None, None]


def normalise_examples(op: LayerNorm, weights: Tensors, x: Tensor) -> Tensor:
    shape = x.shape
    x = x.flatten(1)
    x = x - x.mean(1, keepdim=True)
    if op.kind == "layer":
        x = x / (x.square().mean(1, keepdim=True) + op.eps).sqrt()
    else:
        x = x / (K * x.abs().mean(1, keepdim=True) + op.eps)
    if op.weight is not None:
        x = x * weights[op.weight].flatten()
    if op.bias is not None:
        x = x + weights[op.bias].flatten()
    return x.reshape(shape)
