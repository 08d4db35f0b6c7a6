"""Means that a few devices cannot move at will.

Sources: the coordinate-wise median and trimmed mean of Yin et al., "Byzantine-Robust Distributed
Learning: Towards Optimal Statistical Rates", 2018. Every device counts once, whatever number of
examples it claims.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Aggregation = Literal["mean", "trimmed", "median"]
"""How devices' values merge: by their numbers of examples, or robustly and all alike."""

_TRIMMED_SHARE = 5
"""A trimmed mean leaves out a fifth of the devices at each end, at least one."""


def middle(values: NDArray[np.floating[Any]], rule: Aggregation) -> NDArray[np.float64]:
    """Return the median or trimmed mean over devices, per coordinate.

    Of n devices a median bears fewer than n / 2 that lie, a trimmed mean max(1, n // 5).

    Args:
        values: [devices, ...]; NaN where a device has no say.
        rule: "trimmed" or "median"; of one or two values both are the mean.

    Returns:
        float64 [...]; 0 where no device has a say.
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=0)  # NaN comes last
    count = np.sum(~np.isnan(ordered), axis=0)
    most = np.maximum(count - 1, 0) // 2
    cut = most if rule == "median" else np.minimum(np.maximum(1, count // _TRIMMED_SHARE), most)
    place = np.arange(len(ordered)).reshape(-1, *[1] * (ordered.ndim - 1))
    inside = (place >= cut) & (place < count - cut)
    total = np.where(inside, ordered, 0).sum(axis=0)
    return np.asarray(total / np.maximum(inside.sum(axis=0), 1))
