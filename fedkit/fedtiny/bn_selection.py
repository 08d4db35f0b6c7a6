"""Adaptive BN selection: candidates compete under the fleet's own statistics.

Pruning changes what every norm layer sees, so that statistics of the dense model misjudge a
candidate. Phase 1 re-estimates them on the devices, phase 2 ranks the candidates with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedkit.sparse.state import ModelState, Weights
from fedkit.stats.moments import Merge, Moments, NormMoments, merge


def merge_norms(devices: Sequence[NormMoments], rule: Merge) -> NormMoments:
    """Merge the devices' moments layer by layer, in the order given."""
    return {name: merge([device[name] for device in devices], rule) for name in devices[0]}


def as_stats(norms: NormMoments) -> Weights:
    """Return moments as running statistics by buffer name, float32 [channels]."""
    stats = {}
    for name, moments in norms.items():
        stats[f"{name}.running_mean"] = moments.mean.astype(np.float32)
        stats[f"{name}.running_var"] = moments.variance.astype(np.float32)
    return stats


def as_moments(stats: Weights, examples: float) -> NormMoments:
    """Read running statistics as moments of `examples` samples; the inverse of `as_stats`."""
    suffix = ".running_mean"
    names = [name.removesuffix(suffix) for name in stats if name.endswith(suffix)]
    return {
        name: Moments.from_variance(
            examples, stats[f"{name}.running_mean"], stats[f"{name}.running_var"]
        )
        for name in names
    }


def with_norms(candidate: ModelState, norms: NormMoments) -> ModelState:
    """Return the candidate with re-estimated statistics."""
    return replace(candidate, stats={**candidate.stats, **as_stats(norms)})


def mean_losses(losses: Sequence[Sequence[float]], examples: Sequence[int]) -> NDArray[np.float64]:
    """Return the sample-weighted mean loss per candidate, float64 [candidates].

    Args:
        losses: Per device the loss of each candidate, [devices][candidates].
        examples: Development examples per device, [devices].
    """
    weights = np.asarray(examples, np.float64)
    return np.asarray(weights @ np.asarray(losses, np.float64) / weights.sum())


def best_candidate(losses: NDArray[np.float64]) -> int:
    """Return the candidate of the lowest loss; the first one wins a tie."""
    return int(np.argmin(losses))
