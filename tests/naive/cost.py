"""A slow, obvious reference for fedkit.engine.flops: a convolution that counts its own products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pair = tuple[int, int]


@dataclass
class Work:
    """What one convolution of one example computes, in float64, and the products it takes.

    Attributes:
        outputs: [out, height, width].
        to_inputs: Gradient of the input.
        to_weight: Gradient of the weight, 0 where pruned.
        products: Multiplications of the forward pass, of `to_inputs` and of `to_weight`.
    """

    outputs: Array
    to_inputs: Array
    to_weight: Array
    products: list[int]


def convolve(
    x: Array, weight: Array, mask: Array, gradient: Array, stride: Pair, padding: Pair, groups: int
) -> Work:
    """Run x [in, height, width] forward, and `gradient`, of the outputs' shape, backward.

    A frame of zeros around the input counts as input.
    """
    frame = np.pad(x.astype(np.float64), ((0, 0), *((size, size) for size in padding)))
    work = Work(np.zeros(gradient.shape), np.zeros(frame.shape), np.zeros(weight.shape), [0, 0, 0])
    inputs, outputs = weight.shape[1], len(weight) // groups
    for o, i, ky, kx in zip(*np.nonzero(mask), strict=True):
        channel = o // outputs * inputs + i
        for y, x_ in np.ndindex(gradient.shape[1:]):
            seen = (channel, y * stride[0] + ky, x_ * stride[1] + kx)
            work.outputs[o, y, x_] += weight[o, i, ky, kx] * frame[seen]
            work.products[0] += 1
            work.to_inputs[seen] += weight[o, i, ky, kx] * gradient[o, y, x_]
            work.products[1] += 1
            work.to_weight[o, i, ky, kx] += frame[seen] * gradient[o, y, x_]
            work.products[2] += 1
    height, width = x.shape[1:]
    top, left = padding
    work.to_inputs = work.to_inputs[:, top : top + height, left : left + width]
    return work
