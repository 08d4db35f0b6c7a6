"""Slow, obvious twins of fedkit.sparse and fedkit.fedtiny."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def dense_topk(values: NDArray[np.float32], count: int) -> list[int]:
    """Sort everything: larger magnitude first, then lower index."""
    order = sorted(range(len(values)), key=lambda i: (-abs(float(values[i])), i))
    return sorted(order[:count])


def entropy_bytes(size: int, kept: int) -> float:
    if kept in (0, size):
        return 0.0
    p = kept / size
    return size * (-p * math.log2(p) - (1 - p) * math.log2(1 - p)) / 8


def swap_layer(
    weights: list[float], mask: list[bool], gradient: dict[int, float], amount: int
) -> list[bool]:
    """Grow and drop one weight at a time."""
    before = [i for i, kept in enumerate(mask) if kept]
    grown = sorted(gradient, key=lambda i: (-abs(gradient[i]), i))[:amount]
    dropped = sorted(before, key=lambda i: (abs(weights[i]), i))[: len(grown)]
    return [(kept or i in grown) and i not in dropped for i, kept in enumerate(mask)]
