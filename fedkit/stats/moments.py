"""Mergeable first and second moments, in float64.

`Moments` of two sets of samples merge into the moments of their union by Chan's rule. What devices
measured under the same model so becomes what their pooled data would give; norms that each device
computes from its own batches are part of the model (`fedkit.methods.exact_norms`). Raw second
moments would cancel in float32 where the mean is large; centred ones do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Merge = Literal["pooled", "paper", "absolute", "folded"]
"""How spreads of disjoint samples merge.

`pooled` gives the variance of all samples together. `paper` averages variances (FedTiny's rule).
The others are for L1 norms, where squared mean absolute deviations stand for variances. `absolute`
averages the deviations, which is exact where all are taken around the mean of all samples. `folded`
takes each to be around its own part's mean and says what it would be around that of all, which is
exact where every part is normally distributed: then deviations follow the folded normal.
"""


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviation per channel.

    Attributes:
        n: Number of samples per channel; >= 0.
        mean: float64 [channels].
        m2: float64 [channels], the sum of (x - mean)^2.
    """

    n: float
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @classmethod
    def of(cls, samples: NDArray[np.floating[Any]]) -> Moments:
        """Return the moments of `samples` [n, channels]."""
        x = samples.astype(np.float64)
        mean = x.mean(axis=0)
        return cls(len(x), mean, np.square(x - mean).sum(axis=0))

    @classmethod
    def around_zero(cls, samples: NDArray[np.floating[Any]]) -> Moments:
        """Return second moments of `samples` [n, channels] around 0, which pool as variances do."""
        x = samples.astype(np.float64)
        return cls(len(x), np.zeros(x.shape[1]), np.square(x).sum(axis=0))

    @classmethod
    def from_variance(
        cls, n: float, mean: NDArray[np.floating[Any]], variance: NDArray[np.floating[Any]]
    ) -> Moments:
        """Return moments from a mean and a biased variance, each [channels]."""
        return cls(n, mean.astype(np.float64), variance.astype(np.float64) * n)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Biased variance, float64 [channels]."""
        return self.m2 / self.n

    def __add__(self, other: Moments) -> Moments:
        """Merge two disjoint sets of samples (Chan, Golub and LeVeque, 1983)."""
        n = self.n + other.n
        if n == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        return Moments(n, mean, self.m2 + other.m2 + np.square(delta) * (self.n * other.n / n))


def merge(parts: Sequence[Moments], rule: Merge = "pooled") -> Moments:
    """Merge the moments of several devices, in the order given.

    `paper` averages the variances by sample count and so leaves out the spread of the devices'
    means; it is never larger than `pooled`.
    """
    pooled = reduce(Moments.__add__, parts)
    if rule == "pooled":
        return pooled
    if rule in ("absolute", "folded"):
        offsets = [(part.mean - pooled.mean) * (rule == "folded") for part in parts]
        around = (_around(*pair) for pair in zip(parts, offsets, strict=True))
        total = sum(part.n * each for part, each in zip(parts, around, strict=True))
        return Moments.from_variance(pooled.n, pooled.mean, np.square(total / pooled.n))
    return Moments(pooled.n, pooled.mean, np.sum([part.m2 for part in parts], axis=0))


def _around(part: Moments, offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sqrt(pi / 2) E|d + offset|, where sqrt(pi / 2) E|d| is known and d is normal."""
    deviation = np.sqrt(part.variance)
    ratio = np.abs(offset) / np.maximum(deviation, np.finfo(np.float64).tiny)
    ratio = np.minimum(ratio, 40.0)  # from there on the sign of d + offset is certain
    tails = np.array([math.erf(each / math.sqrt(2)) for each in ratio.tolist()])
    near = deviation * np.exp(-np.square(ratio) / 2)
    return np.asarray(near + math.sqrt(math.pi / 2) * np.abs(offset) * tails)


NormMoments = Mapping[str, Moments]
"""Moments of the inputs of each norm layer, by module name."""
