"""L1 normalisation forward and backward, with L2 beside it: the float64 definition.

With d = x - mean(x), K = sqrt(pi/2) and, for L1, sigma = K mean|d| + eps; for L2, sigma =
sqrt(mean(d^2) + eps). Then xhat = d / sigma and y = weight xhat + bias. Backward, with g' =
weight g, all means over what is normalised together:

    dbias = sum g        dweight = sum g xhat
    L1: dx = (g' - mean(g') - K (s - mean(s)) mean(g' xhat)) / sigma,  s = sign(d)
    L2: dx = (g' - mean(g') - xhat mean(g' xhat)) / sigma

L1 takes no square root and no squares. For normally distributed inputs both sigmas agree. The
gradient is derived here: only the abstract of Guo et al., arXiv 2411.10948, was available.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import K

Kind = Literal["batch", "l1-batch", "layer", "l1-layer"]
"""A batch norm takes [n, channels, ...] and normalises each channel; a layer norm takes [...,
features] and normalises each row of features."""

Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class Normalized:
    """What a forward pass returns, and the backward pass needs.

    Attributes:
        y: The output, of the input's shape.
        xhat: The output before weight and bias.
        sigma: The deviation divided by, in a shape that broadcasts against `y`.
    """

    y: Float64s
    xhat: Float64s
    sigma: Float64s


@dataclass(frozen=True)
class NormGradients:
    """Gradients of a norm's input, weight and bias, each of its shape."""

    x: Float64s
    weight: Float64s
    bias: Float64s


def norm_forward(
    x: Float64s, weight: Float64s, bias: Float64s, eps: float, kind: Kind
) -> Normalized:
    """Normalise.

    Args:
        x: float64 [n, channels, ...] for a batch norm, [..., features] for a layer norm.
        weight: float64 [channels] or [features].
        bias: Of the weight's shape.
        eps: Added to the deviation (L1) or to the variance (L2).
        kind: Which norm.
    """
    together = _together(x, kind)
    d = x - x.mean(together, keepdims=True)
    if kind.startswith("l1"):
        sigma = K * np.abs(d).mean(together, keepdims=True) + eps
    else:
        sigma = np.sqrt(np.square(d).mean(together, keepdims=True) + eps)
    xhat = d / sigma
    return Normalized(_spread(weight, x, kind) * xhat + _spread(bias, x, kind), xhat, sigma)


def norm_backward(g: Float64s, weight: Float64s, forward: Normalized, kind: Kind) -> NormGradients:
    """Return the gradients.

    Args:
        g: Gradient of the output, of its shape.
        weight: As given to `norm_forward`.
        forward: What that returned.
        kind: Which norm.
    """
    xhat = forward.xhat
    mean = functools.partial(np.mean, axis=_together(g, kind), keepdims=True)
    gw = _spread(weight, g, kind) * g
    direction = K * (np.sign(xhat) - mean(np.sign(xhat))) if kind.startswith("l1") else xhat
    dx = (gw - mean(gw) - direction * mean(gw * xhat)) / forward.sigma
    per_weight = _all_but(g, _axis(kind))
    return NormGradients(dx, (g * xhat).sum(per_weight), g.sum(per_weight))


def _axis(kind: Kind) -> int:
    """Return the axis of weight and bias."""
    return 1 if kind.endswith("batch") else -1


def _together(x: Float64s, kind: Kind) -> tuple[int, ...]:
    """Return the axes that are normalised together."""
    return _all_but(x, 1) if kind.endswith("batch") else (x.ndim - 1,)


def _all_but(x: Float64s, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(x.ndim) if i != axis % x.ndim)


def _spread(values: Float64s, x: Float64s, kind: Kind) -> Float64s:
    return np.expand_dims(values, _all_but(x, _axis(kind)))
