"""Running statistics of norms, as all engines but torch's take them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.plan.structure import Norm

Floats64 = NDArray[np.float64]
BatchStatistics = Iterable[tuple[Norm, Floats64, Floats64]]
"""Each norm with the mean and the variance, unbiased, of its channels in one batch."""


class RunningStatistics:
    """The plain mean of batch statistics; see `TorchEngine._restart_statistics`."""

    def __init__(self, names: Iterable[str]) -> None:
        """Begin without a batch.

        Args:
            names: Names of all running statistics, in the order that `mean` keeps.
        """
        self._names = tuple(names)
        self.restart()

    def restart(self) -> None:
        """Forget all batches."""
        self._batches = 0
        self._sums: dict[str, Floats64] = {}

    def add(self, batch: BatchStatistics) -> None:
        """Take in the statistics of one batch."""
        self._batches += 1
        for norm, mean, variance in batch:
            for name, value in zip(norm.stats, (mean, variance), strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + value

    def mean(self) -> dict[str, NDArray[np.float32]]:
        """Return float32 [channels] per running statistic; none where there are no norms."""
        return {
            name: (self._sums[name] / self._batches).astype(np.float32)
            for name in self._names
            if name in self._sums
        }
