"""Choose integers and bias of a layer by what it computes, not by the weights it had.

A layer computes W x in the float model and Q x' in the int8 model, whose inputs x' were rounded and
come from layers that were. Its bias makes up for the difference of the means (Nagel et al.,
"Data-Free Quantization through Weight Equalization and Bias Correction", 2019). Few bits leave more
than that to make up for: `descend` lessens E |W x - Q x'|^2, means apart, by changing one integer
at a time to the best (coordinate descent: Behdin et al., "QuantEase", 2023, arXiv 2309.01885). As
x is the float model's, a layer also works against what the layers before it lost (Li et al.,
"GPTAQ", 2025, arXiv 2504.02692). A pruned weight stays zero.

Shapes: outputs that read the same inputs are a group. A convolution or linear layer is one group,
in a depthwise convolution every input channel has one. Weights are [groups, outputs, terms], inputs
[groups, rows, terms]; a term is a place of the kernel and a channel of the group.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedkit.graph import ir
from fedkit.graph.interpret import FloatArray
from fedkit.graph.ops.registry import weights_of
from fedkit.graph.taps import Number, taps

Floats = NDArray[np.float64]

MOST_TERMS = 4608
"""Of a sum, for `descend`: the widest layer of ResNet-18. Its moments take 170 MB."""

_ROWS = 2**14  # places at which inputs are looked at
_MOST_VALUES = 2**26  # of inputs that are held at once
_DAMPING = 0.01  # of the mean variance: as if the inputs had that much noise of their own
_SWEEPS = 10
_BLOCK = 64
_TINY = 1e-30


def by_group(op: ir.Op, weight: NDArray[np.float64], groups: int) -> Floats:
    """Return the weights of a layer, in the graph's layout, as [groups, outputs, terms]."""
    rows = weights_of(op).by_channel(weight)
    return rows.reshape(groups, len(rows) // groups, -1)


def as_weight(op: ir.Op, by_group: Floats, shape: ir.Shape) -> Floats:
    """Undo `by_group`."""
    return weights_of(op).laid(by_group, shape)


def means(op: ir.Op, x: FloatArray, groups: int) -> Floats:
    """Return the mean of each term over all places, [groups, terms].

    Args:
        op: A convolution or linear layer.
        x: float32 [n, ...], its input.
        groups: Of its channels.
    """
    if op.window is None:
        return np.asarray(x.mean(axis=0, dtype=np.float64)[None])
    seen = [tap.mean(axis=(0, 1, 2), dtype=np.float64) for _, _, tap in taps(x, op.window)]
    return _grouped(np.stack(seen)[None], groups)[:, 0]


def moments(op: ir.Op, real: FloatArray, rounded: FloatArray, groups: int) -> tuple[Floats, Floats]:
    """Return E[x' x'^T] and E[x x'^T], means apart, [groups, terms, terms]; both damped alike.

    Args:
        op: A convolution or linear layer.
        real: x, the input in the float model, float32 [n, ...].
        rounded: x', the same in the int8 model.
        groups: Of its channels.
    """
    x, other = (_centred(_inputs(op, each, groups)) for each in (rounded, real))
    is_depthwise = op.window is not None and 1 < groups == real.shape[-1]
    product = _of_channels if is_depthwise and x.shape[2] > 1 else _of_terms
    own = product(x, x).astype(np.float64) / x.shape[1]
    cross = product(other, x).astype(np.float64) / x.shape[1]
    variance = np.einsum("gtt->g", own) / own.shape[1]
    noise = _DAMPING * variance[:, None, None] * np.eye(own.shape[1])
    return own + noise, cross + noise


def _of_terms(x: FloatArray, y: FloatArray) -> FloatArray:
    """Return the products of terms over all rows, [groups, terms of x, terms of y]."""
    return np.asarray(np.swapaxes(x, 1, 2) @ y)


def _of_channels(x: FloatArray, y: FloatArray) -> FloatArray:
    """Do the same where a group is a channel, row after row, for all channels at once.

    Channels lie side by side, which libraries of matrices do not take: numpy then sums as here,
    each by itself.
    """
    left, right = (np.moveaxis(each, 0, -1) for each in (x, y))  # [rows, terms, channels]
    made = np.empty((x.shape[0], x.shape[2], y.shape[2]), np.float32)
    for i, j in np.ndindex(made.shape[1:]):
        made[:, i, j] = (left[:, i] * right[:, j]).sum(axis=0)
    return made


def _inputs(op: ir.Op, x: FloatArray, groups: int) -> FloatArray:
    """Return what the terms multiply at some places, float32 [groups, rows, terms]."""
    if op.window is None:
        return x[None, :_ROWS]
    seen = [tap.reshape(-1, tap.shape[-1]) for _, _, tap in taps(x, op.window)]
    rows = min(_ROWS, _MOST_VALUES // (len(seen) * x.shape[-1]))
    stride = max(1, math.ceil(len(seen[0]) / rows))
    return _grouped(np.stack([each[::stride] for each in seen], axis=1), groups)


def _grouped(x: NDArray[Number], groups: int) -> NDArray[Number]:
    """Turn [rows, places, channels] into [groups, rows, terms]."""
    rows, places, channels = x.shape
    split = x.reshape(rows, places, groups, channels // groups)
    return np.moveaxis(split, 2, 0).reshape(groups, rows, -1)


def _centred(x: FloatArray) -> FloatArray:
    return np.asarray(x - x.mean(axis=1, keepdims=True))


def descend(
    weight: Floats, integers: Floats, steps: Floats, most: int, own: Floats, cross: Floats
) -> Floats:
    """Return integers whose products differ less from those of the weights, or no more.

    Args:
        weight: [groups, outputs, terms]; where it is 0 the integer stays as it is.
        integers: To begin with, of the same shape.
        steps: [groups, outputs]: what an integer is worth, above 0.
        most: How large one may be.
        own: See `moments`.
        cross: See `moments`.
    """
    integers, kept = integers.copy(), weight != 0
    rest = weight @ cross - (integers * steps[..., None]) @ own  # half the gradient, downwards
    for _ in range(_SWEEPS):
        before = integers.copy()
        for start in range(0, weight.shape[2], _BLOCK):
            at = slice(start, start + _BLOCK)
            moved = _sweep(
                integers[..., at], kept[..., at], rest[..., at].copy(), steps, most, own[:, at, at]
            )
            rest += -moved @ own[:, at]
        if (integers == before).all():
            break
    return integers


def _sweep(
    integers: Floats, kept: NDArray[np.bool_], rest: Floats, steps: Floats, most: int, own: Floats
) -> Floats:
    """Change the integers of a block in place; return by how much the weights moved."""
    moved = np.zeros_like(integers)
    for term in range(integers.shape[2]):
        worth = np.maximum(own[:, None, term, term] * steps, _TINY)
        best = np.rint(integers[..., term] + rest[..., term] / worth)
        change = (np.clip(best, -most, most) - integers[..., term]) * kept[..., term]
        integers[..., term] += change
        moved[..., term] = change * steps
        rest -= moved[..., term, None] * own[:, None, term]
    return moved
