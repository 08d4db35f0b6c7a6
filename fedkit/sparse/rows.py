"""Reductions over the rows of a ragged matrix that lies in one vector; any row may be empty."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def reduce_rows(
    how: np.ufunc, values: NDArray[np.number[Any]], counts: NDArray[np.integer[Any]]
) -> NDArray[Any]:
    """Reduce each row to one value; an empty row gives 0.

    >>> reduce_rows(np.maximum, np.array([2.0, 1.0, 3.0]), np.array([0, 2, 0, 1, 0])).tolist()
    [0.0, 2.0, 0.0, 3.0, 0.0]

    Args:
        how: A ufunc of two arguments, such as `np.add`.
        values: All rows one after another, [sum of counts].
        counts: Values of each row, [rows], at least 0.

    Returns:
        [rows], of the type of `values`.
    """
    reduced = np.zeros(len(counts), values.dtype)
    filled = np.flatnonzero(counts)
    if len(filled):
        # Of filled rows alone: reduceat takes the start of an empty one for a row of one value.
        starts = np.cumsum(counts)[filled] - counts[filled]
        reduced[filled] = how.reduceat(values, starts)
    return reduced
