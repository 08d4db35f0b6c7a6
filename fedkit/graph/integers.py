"""What the integers of a quantised graph can be: the ends of results, the bounds of sums."""

from __future__ import annotations

import numpy as np

from fedkit.graph.ir import Activation, Array, Graph, Kind, Op
from fedkit.graph.ops.registry import CHANNEL_AXIS, spec_of

SMALLEST_MULTIPLIER = 2.0**-31
LARGEST_MULTIPLIER = 256.0
"""What a sum may be multiplied by to become int8, so that kernels can: less than the largest."""

LARGEST_OF_PRODUCTS = 0.5
"""What the product of two integers may be in steps of the result: kernels hold it in 16 bits."""


def limits(graph: Graph, op: Op) -> tuple[int, int]:
    """Return the least and the largest integer that an op of an int8 graph may write.

    So it is in what we emit ourselves; runtimes that compute the integer of 6 may round it else.
    """
    out = graph.tensors[op.output]
    low = -128 if activation(op) == "none" else max(-128, out.zero_point)
    if activation(op) != "relu6":
        return low, 127
    return low, min(127, out.zero_point + round(6.0 / out.scale))


def activation(op: Op) -> Activation:
    """Return what is applied to the result of an op, which may be an activation itself."""
    own = spec_of(op).activation
    return op.activation if own == "none" else own


def accumulator_bound(weight: Array, bias: Array, kind: Kind) -> int:
    """Return the largest magnitude that a sum over int8 weights, in any order, can have."""
    return int(largest_sums(weight, bias, kind).max())


def largest_sums(weight: Array, bias: Array, kind: Kind) -> Array:
    """Return that bound for each output channel."""
    others = tuple(i for i in range(weight.ndim) if i != CHANNEL_AXIS[kind])
    sums = np.abs(weight.astype(np.int64)).sum(axis=others) * 255
    return np.asarray(sums + np.abs(bias.astype(np.int64)))
