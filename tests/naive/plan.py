"""A slow, obvious reference for the engines that execute a plan, in torch and autograd."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedkit.engine.ops.add import Add
from fedkit.engine.ops.affine import Affine
from fedkit.engine.ops.copy import Copy
from fedkit.engine.ops.depth_to_space import DepthToSpace
from fedkit.engine.ops.join import Join
from fedkit.engine.ops.pool import Pool
from fedkit.engine.ops.reorder import Reorder
from fedkit.engine.ops.resize_linear import ResizeLinear
from fedkit.engine.ops.take import Take
from fedkit.engine.plan.conv import Conv, TransposedConv
from fedkit.engine.plan.function import FunctionOp
from fedkit.engine.plan.layer_norm import GroupNorm, LayerNorm
from fedkit.engine.plan.pair import PairOp
from fedkit.engine.plan.structure import Norm, Plan, PlanOp
from tests.naive.functions import FUNCTIONS

Tensors = Mapping[str, Tensor]
K = math.sqrt(math.pi / 2)


@dataclass
class Pass:
    """One pass of a plan, as an op sees it.

    Attributes:
        weights: By name.
        read: Gives what is read of a tensor, [n, channels, height, width].
        raw: The stored values of each tensor.
        taken: Read values by tensor, from elsewhere: maxima take the branches they tell.
        convs_within: By number, what a convolution reads at most.
    """

    weights: Tensors
    read: Callable[[int], Tensor]
    raw: list[Tensor]
    taken: Mapping[int, Tensor]
    convs_within: Mapping[int, float]


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
    taken = taken or {}
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

    here = Pass(weights, read, raw, taken, convs_within or {})
    for number, op in enumerate(plan.ops):
        shape = raw[op.target].shape
        raw[op.target] = MEANING[type(op)](here, number, op)
        assert raw[op.target].shape == shape
    return read(plan.output).reshape(n, -1)


def _copy(here: Pass, number: int, op: Copy) -> Tensor:
    raw = here.raw[op.target]
    part = here.read(op.source).reshape(len(raw), -1, *raw.shape[2:])
    raw[:, op.channel : op.channel + part.shape[1]] = part
    return raw


def _conv(here: Pass, number: int, op: Conv) -> Tensor:
    most = here.convs_within.get(number, math.inf)
    return convolve(op, here.weights, here.read(op.source).clamp(-most, most))


def _pool(here: Pass, number: int, op: Pool) -> Tensor:
    x, how = here.read(op.source), (op.kernel, op.stride, op.padding)
    if op.operation != "max":
        return F.avg_pool2d(x, *how, divisor_override=1 if op.operation == "sum" else None)
    return pick_largest(op, x, here.taken.get(op.source, x))


def _pair(here: Pass, number: int, op: PairOp) -> Tensor:
    combine = {"mul": operator.mul, "sub": operator.sub, "add-gate": operator.add}[op.kind]
    return torch.as_tensor(combine(here.read(op.left), here.read(op.right)))


def _take(here: Pass, number: int, op: Take) -> Tensor:
    x = here.read(op.source)
    for axis, each in enumerate((op.from_channels, op.from_rows, op.from_columns), start=1):
        places = range(x.shape[axis]) if each is None else each
        lines = [x.select(axis, max(place, 0)) * (place >= 0) for place in places]
        x = torch.stack(lines, axis)
    return x


def _affine(here: Pass, number: int, op: Affine) -> Tensor:
    scale, shift = (torch.tensor(each).view(-1, 1, 1) for each in (op.scale, op.shift))
    return scale * here.read(op.source) + shift


def _depth_to_space(here: Pass, number: int, op: DepthToSpace) -> Tensor:
    _, _, *size = here.raw[op.target].shape
    n, channels, *plane = (x := here.read(op.source)).shape
    patches = x.reshape(n, channels, -1)  # fold puts them side by side: channels, then places
    rows, columns = (p * b for p, b in zip(plane, op.block, strict=True))
    whole = F.fold(patches, (rows, columns), op.block, stride=op.block)
    (top, left), (height, width) = op.first, size
    inside = whole[:, :, top : top + height, left : left + width]
    return inside if op.bias is None else inside + here.weights[op.bias][:, None, None]


def _resize(here: Pass, number: int, op: ResizeLinear) -> Tensor:
    x = here.read(op.source)
    for axis, places in ((2, op.rows), (3, op.columns)):
        last = x.shape[axis] - 1
        parts = [
            torch.lerp(x.select(axis, int(p)), x.select(axis, min(int(p) + 1, last)), p - int(p))
            for p in places
        ]
        x = torch.stack(parts, axis)
    return x


def _transposed(here: Pass, number: int, op: TransposedConv) -> Tensor:
    """What a transposed convolution gives, with nothing cut off, as channels for each place."""
    most = here.convs_within.get(number, math.inf)
    x, weight = here.read(op.source).clamp(-most, most), here.weights[op.weight]
    weight = weight.reshape(*weight.shape[:2], *op.size)
    given = F.conv_transpose2d(x, weight, None, op.step, dilation=op.gap, groups=op.groups)
    _, channels, height, width = here.raw[op.target].shape
    # As many blocks of zeros before and behind as its padding gives, less what kernels reach.
    before = [s * (p - k + 1) for s, p, k in zip(op.step, op.padding, op.kernel, strict=True)]
    room = x.new_zeros((len(x), given.shape[1], height * op.step[0], width * op.step[1]))
    for y, x_, from_y, from_x in _overlap(before, given.shape[2:], room.shape[2:]):
        room[:, :, y, x_] = given[:, :, from_y, from_x]
    return F.unfold(room, op.step, stride=op.step).reshape(len(x), channels, height, width)


def _overlap(before: list[int], size: Any, room: Any) -> list[tuple[slice, ...]]:
    """Return where a map that begins so far inside meets a room, there and in the map."""
    places = [
        (max(0, b), min(r, b + s), max(0, b)) for b, s, r in zip(before, size, room, strict=True)
    ]
    there = [slice(first, last) for first, last, _ in places]
    here = [slice(first - b, last - b) for b, (first, last, _) in zip(before, places, strict=True)]
    return [(*there, *here)]


def _join(here: Pass, number: int, op: Join) -> Tensor:
    return torch.cat([here.read(part) for part in op.parts], {"rows": 2, "columns": 3}[op.axis])


def _reorder(here: Pass, number: int, op: Reorder) -> Tensor:
    axes = (axis + 1 for axis in op.order)
    return here.read(op.source).permute(0, *axes).reshape(here.raw[op.target].shape)


MEANING: dict[type[PlanOp], Callable[[Pass, int, Any], Tensor]] = {
    Affine: _affine,
    Add: lambda here, number, op: here.read(op.left) + here.read(op.right),
    Conv: _conv,
    Copy: _copy,
    DepthToSpace: _depth_to_space,
    GroupNorm: lambda here, number, op: normalise_groups(op, here.weights, here.read(op.source)),
    FunctionOp: lambda here, number, op: FUNCTIONS[op.kind](here.read(op.source), *op.settings),
    Join: _join,
    LayerNorm: lambda here, number, op: normalise_examples(op, here.weights, here.read(op.source)),
    PairOp: _pair,
    Pool: _pool,
    ResizeLinear: _resize,
    Reorder: _reorder,
    Take: _take,
    TransposedConv: _transposed,
}
"""What each op computes; the test of a new op adds its own."""


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


def normalise_groups(op: GroupNorm, weights: Tensors, x: Tensor) -> Tensor:
    x = F.group_norm(x, op.groups, eps=op.eps)
    if op.weight is not None:
        x = x * weights[op.weight][:, None, None]
    return x if op.bias is None else x + weights[op.bias][:, None, None]
