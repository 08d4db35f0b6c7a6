"""Fewer points of a long line: what is drawn of ten thousand rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def thinned(values: Sequence[float | None], most: int) -> list[int]:
    """Return which points to draw of a line, ascending: the first, the last and all extremes.

    The line is cut into equal parts, and of each the least and the largest value stay, so that no
    single peak is lost. A line of at most `most` points stays whole.

    Args:
        values: Of the line; None where there is none.
        most: Points, 4 or more.
    """
    if len(values) <= most:
        return list(range(len(values)))
    array = np.array([np.nan if value is None else value for value in values], np.float64)
    parts = np.array_split(np.arange(len(values)), (most - 2) // 2)
    kept = {0, len(values) - 1}
    for part in parts:
        kept.update(_extremes(array, part))
    return sorted(kept)


def _extremes(values: NDArray[np.float64], part: NDArray[np.int64]) -> list[int]:
    there = part[~np.isnan(values[part])]
    if not len(there):
        return []
    return [int(there[values[there].argmin()]), int(there[values[there].argmax()])]


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers below `count`, evenly, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(each * (count - 1) / (most - 1)) for each in range(most)]
