"""What limits a step: the bytes it must move and the operations it must do, and their rates here.

The model is the roofline of Williams, Waterman and Patterson (2009): a step takes at least its
bytes divided by the rate at which this machine copies memory, and its operations divided by the
rate at which it multiplies. Both rates are measured in the same run, on one thread: of a copy
within as many bytes as the step plans for its tensors, so that it meets the same caches, and of
torch's product of float32 matrices.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

_REPEATS = 9
_SIDE = 1024
_LEAST_SECONDS = 0.01


@dataclass(frozen=True)
class Rates:
    """What one thread reaches.

    Attributes:
        bytes_per_second: Read and written by a copy.
        flops_per_second: Of a product of matrices; a multiply-accumulate is 2.
    """

    bytes_per_second: float
    flops_per_second: float

    def least_seconds(self, moved_bytes: int, flops: int) -> float:
        """Return the time below which nothing does this work."""
        return max(moved_bytes / self.bytes_per_second, flops / self.flops_per_second)


def measure_rates(footprint: int) -> Rates:
    """Measure this thread; the caller keeps it on one core.

    Args:
        footprint: Bytes that the copies go through, at least 2.
    """
    source = np.zeros(max(1, footprint // 2), np.uint8)
    target = np.ones_like(source)
    left = torch.rand(_SIDE, _SIDE)
    product = torch.empty(_SIDE, _SIDE)
    copying = _seconds(lambda: np.copyto(target, source))
    multiplying = _seconds(lambda: torch.mm(left, left, out=product))
    return Rates(2 * source.nbytes / copying, 2 * _SIDE**3 / multiplying)


def _seconds(job: Callable[[], object]) -> float:
    """Return the median time of a job, which is repeated until a clock can tell it."""
    job()
    began = time.perf_counter()
    job()
    times = max(1, round(_LEAST_SECONDS / max(time.perf_counter() - began, 1e-9)))
    return statistics.median(_timed(job, times) for _ in range(_REPEATS)) / times


def _timed(job: Callable[[], object], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        job()
    return time.perf_counter() - began
