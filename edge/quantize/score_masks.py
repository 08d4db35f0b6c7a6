"""Sums of scores and a mask, see `fedkit.graph.attention_masks`, in integers.

A place that is left out has the integer -128. So that a softmax gives it 0 whatever the scores are,
all that its line keeps must be far above: the result has a range that goes on below the least score
that its input can hold. All that is left out then weighs, together, at most 1/512 of what is kept,
and each by itself rounds to 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.attention_masks import is_far

_SHARE = 512
"""Of what is kept, one part of which all that is left out weighs at most."""

_SPARE_STEPS = 2
"""For roundings of a mask and of a zero point."""


def masked(graph: ir.Graph) -> Mapping[str, ir.Array]:
    """Return result of each sum with a mask -> what that keeps of it, bool [1, ...].

    Raises:
        ExportError: Something else than a softmax reads such a result.
    """
    found = {}
    for op in graph.ops:
        masks = [data for name in op.inputs if (data := graph.tensors[name].data) is not None]
        if op.kind == "add" and masks and is_far(masks[0]).any():
            readers = {each.kind for each in graph.ops if op.output in each.inputs}
            if readers != {"softmax"} or op.output in graph.outputs:
                raise ExportError(
                    f"module {op.source!r} adds {masks[0].min():.3g} to values that something else "
                    "than a softmax over the last axis reads; a mask can leave out scores alone"
                )
            shape = graph.tensors[op.output].shape
            found[op.output] = np.broadcast_to(~is_far(masks[0]), shape)
    return found


def lowest(scores: ir.Tensor, mask: ir.Array) -> float:
    """Return how low the range of scores with a mask goes.

    Args:
        scores: Quantised.
        mask: Float.
    """
    least = scores.scale * (-128 - scores.zero_point) + float(mask[~is_far(mask)].min(initial=0))
    return least - math.log(_SHARE * mask.shape[-1]) - _SPARE_STEPS * scores.scale


def finite_mask(scores: ir.Tensor, mask: ir.Array, result: ir.Quantization) -> ir.Array:
    """Return a mask with numbers that integers can hold, and that bring every score below -128.

    Args:
        scores: Quantised.
        mask: Float.
        result: Of the sum.
    """
    (step,), (zero,) = result.scale, result.zero_point
    highest = scores.scale * (127 - scores.zero_point)
    below = step * (-128 - zero) - highest - _SPARE_STEPS * step
    return np.where(is_far(mask), below, mask)
