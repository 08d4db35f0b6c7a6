"""Which weights: a streaming selection of the largest magnitudes, in memory of its own size.

Order everywhere: larger magnitude first; equal magnitudes by lower index. The tie rule makes the
result independent of tile size, thread count and backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import WireError


@dataclass(frozen=True)
class Entries:
    """Some entries of a flattened tensor: indices ascending int64 [m], values float32 [m]."""

    indices: NDArray[np.int64]
    values: NDArray[np.float32]


def largest(values: NDArray[np.floating[Any]], count: int) -> NDArray[np.int64]:
    """Return the positions of the `count` largest |values| (flat), ascending; infinite ones too.

    Raises:
        WireError: Some are wanted, and a value is NaN, which has no order.
    """
    if count >= len(values):
        return np.arange(len(values))
    if count == 0:
        return np.empty(0, np.int64)
    magnitudes = np.abs(values)
    if np.isnan(magnitudes).any():
        raise WireError(
            f"{np.sum(np.isnan(magnitudes))} of {len(values)} values are NaN, so the largest ones "
            "have no order; lower the learning rate or check the device's data"
        )
    threshold = np.partition(magnitudes, len(values) - count)[len(values) - count]
    above = np.flatnonzero(magnitudes > threshold)
    ties = np.flatnonzero(magnitudes == threshold)[: count - len(above)]
    return np.sort(np.concatenate([above, ties]))


class StreamingTopK:
    """Keep the `capacity` entries of largest |value| out of a stream of tiles.

    Tiles arrive in ascending order of index. Between tiles `capacity` entries are held, so a
    layer's gradient never has to exist as a whole.

    >>> top = StreamingTopK(2)
    >>> top.push(np.array([0, 1]), np.array([1.0, -3.0], np.float32))
    >>> top.push(np.array([2, 3]), np.array([3.0, 3.0], np.float32))
    >>> top.entries().indices.tolist()
    [1, 2]
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._indices = np.empty(0, np.int64)
        self._values = np.empty(0, np.float32)

    def push(self, indices: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Offer one tile: indices int64 [m] ascending, values float32 [m].

        Raises:
            WireError: A value is NaN or infinite, so no order exists.
        """
        if not np.isfinite(values).all():
            raise WireError(
                "a gradient is NaN or infinite, so the largest ones have no order; "
                "lower the learning rate or check the device's data"
            )
        if self.capacity == 0:
            return
        if len(self._values) == self.capacity:
            # An equal magnitude comes later in the stream, hence has the higher index and loses.
            better = np.abs(values) > np.abs(self._values).min()
            indices, values = indices[better], values[better]
        self._indices = np.concatenate([self._indices, indices])
        self._values = np.concatenate([self._values, values])
        chosen = largest(self._values, self.capacity)
        self._indices, self._values = self._indices[chosen], self._values[chosen]

    def entries(self) -> Entries:
        """Return what is kept so far, indices ascending."""
        return Entries(self._indices, self._values)
