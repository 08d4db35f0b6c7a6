"""Masks: numbers far below all others, added to scores so that a softmax leaves places out.

In a model they are minus infinity, or as good as. Here they are one number, which float32 can add
to any score; what integers are made of it, `edge.quantize.score_masks` says.
"""

from __future__ import annotations

import numpy as np

from fedkit.graph import ir
from fedkit.graph.operands import require

FAR = -1e30
"""What is added to a score that is left out."""

_LEFT_OUT = -1e4
"""From which numbers of a model on a place is left out: `exp` of that is 0, whatever the others."""


def is_far(values: ir.Array) -> ir.Array:
    """Tell which numbers of a constant, or values that they were added to, are far below."""
    return np.asarray(values < FAR / 2)


def with_far(mask: ir.Array) -> ir.Array:
    """Return what a model adds to scores, or what it keeps of them (booleans), with `FAR`.

    Raises:
        Unsupported: A line leaves all places out, so that its softmax has no value.
    """
    if mask.dtype == np.bool_:
        mask = np.where(mask, 0.0, -np.inf)
    left_out = mask <= _LEFT_OUT
    is_empty = mask.ndim > 0 and bool(left_out.all(axis=-1).any())
    require(not is_empty, "a mask that leaves out all places of a line; one must be left")
    return np.where(left_out, FAR, mask)
