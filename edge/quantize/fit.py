"""Choose integers and bias of a layer by what it computes, not by the weights it had.

A layer computes W x in the float model and Q x' in the int8 model, whose inputs x' were rounded and
come from layers that were. Its bias makes up for the difference of the means (Nagel et al.,
"Data-Free Quantization through Weight Equalization and Bias Correction", 2019). Few bits leave more
than that to make up for: `descend` lessens E |W x - Q x'|^2, means apart, by changing one integer
at a time to the best (coordinate descent: Behdin et al., "QuantEase", 2023, arXiv 2309.01885). As
x is the float model's, a layer also works against what the layers before it lost (Li et al.,
"GPTAQ", 2025, arXiv 2504.02692). A pruned weight stays zero.

Shapes: outputs that read the same inputs are a group. A convolution or linear layer is one group,
in a depthwise convolution every output is one. Weights are [groups, outputs, terms], inputs
[groups, rows, terms]; a term is a place of the kernel and, but in a depthwise convolution, a
channel.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedkit.graph import ir
from fedkit.graph.interpret import FloatArray
from fedkit.graph.ops.registry import spec_of
from fedkit.graph.spec import Weights
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


def by_group(op: ir.Op, weight: NDArray[np.float64]) -> Floats:
    """Return the weights of a layer, in the graph's layout, as [groups, outputs, terms]."""
    weights = _weights(op)
    rows = weights.by_channel(weight).reshape(weight.shape[weights.axis], -1)
    return rows[None] if weights.mixes else rows[:, None]


def as_weight(op: ir.Op, groups: Floats, shape: ir.Shape) -> Floats:
    """Undo `by_group`."""
    return _weights(op).laid(groups, shape)


def _weights(op: ir.Op) -> Weights:
    found = spec_of(op).weights
    assert found is not None  # what is fitted has some
    return found


def means(op: ir.Op, x: FloatArray, outputs: int) -> Floats:
    """Return the mean of each term over all places, [groups, terms].

    Args:
        op: Conv, depthwise or linear.
        x: float32 [n, ...], its input.
        outputs: How many channels it computes.
    """
    if op.window is None:
        return np.asarray(x.mean(axis=0, dtype=np.float64)[None])
    seen = [tap.mean(axis=(0, 1, 2), dtype=np.float64) for _, _, tap in taps(x, op.window)]
    return _grouped(op, np.stack(seen)[None], outputs)[:, 0]


def moments(
    op: ir.Op, real: FloatArray, rounded: FloatArray, outputs: int
) -> tuple[Floats, Floats]:
    """Return E[x' x'^T] and E[x x'^T], means apart, [groups, terms, terms]; both damped alike.

    Args:
        op: Conv, depthwise or linear.
        real: x, the input in the float model, float32 [n, ...].
        rounded: x', the same in the int8 model.
        outputs: How many channels it computes.
    """
    x, other = (_centred(_inputs(op, each, outputs)) for each in (rounded, real))
    turned = np.swapaxes(x, 1, 2)
    own = (turned @ x).astype(np.float64) / x.shape[1]
    cross = (np.swapaxes(other, 1, 2) @ x).astype(np.float64) / x.shape[1]
    variance = np.einsum("gtt->g", own) / own.shape[1]
    noise = _DAMPING * variance[:, None, None] * np.eye(own.shape[1])
    return own + noise, cross + noise


def _inputs(op: ir.Op, x: FloatArray, outputs: int) -> FloatArray:
    """Return what the terms multiply at some places, float32 [groups, rows, terms]."""
    if op.window is None:
        return x[None, :_ROWS]
    seen = [tap.reshape(-1, tap.shape[-1]) for _, _, tap in taps(x, op.window)]
    rows = min(_ROWS, _MOST_VALUES // (len(seen) * x.shape[-1]))
    stride = max(1, math.ceil(len(seen[0]) / rows))
    return _grouped(op, np.stack([each[::stride] for each in seen], axis=1), outputs)


def _grouped(op: ir.Op, x: NDArray[Number], outputs: int) -> NDArray[Number]:
    """Turn [rows, places, channels] into [groups, rows, terms]."""
    if _weights(op).mixes:
        return x.reshape(1, len(x), -1)
    return np.repeat(np.moveaxis(x, 2, 0), outputs // x.shape[2], axis=0)


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
