"""Adaptive BN selection: candidates compete under the fleet's own statistics.

Pruning changes what every norm layer sees, so that statistics of the dense model misjudge a
candidate. Phase 1 re-estimates them on the devices, phase 2 ranks the candidates with them.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.sparse.state import ModelState, Weights
from fedkit.stats.moments import Merge, Moments, NormMoments, merge
from fedkit.stats.robust import Aggregation, middle

NormMerge = Literal["pooled", "paper", "exact-last", "exact"]
"""How norm statistics of a fleet come about.

`pooled` and `paper` merge what each device measured with norms of its own batches, in one message;
beyond the first norm of a model that is near BatchNorm over pooled data, and not equal. `exact`
asks for a level of norms at a time (`fedkit.methods.exact_norms`), where candidates are ranked and
after the last round; `exact-last` after the last round alone.
"""


def merge_norms(
    devices: Sequence[NormMoments],
    rule: NormMerge,
    aggregation: Aggregation = "mean",
    absolute: Container[str] = (),
) -> NormMoments:
    """Merge the devices' moments layer by layer, in the order given.

    Args:
        devices: Moments of the same norms.
        rule: `paper` averages variances; `pooled` takes the spread of means in; so does `exact`,
            which is of moments under common statistics (`Engine.norm_moments`, frozen).
        aggregation: Robust rules take means and variances each by itself, and have no use for
            `rule`.
        absolute: Norms whose spread is a squared mean absolute deviation (see `Engine`).
    """
    parts = {name: [device[name] for device in devices] for name in devices[0]}
    if aggregation == "mean":
        return {
            name: merge(moments, _rule(rule, name in absolute)) for name, moments in parts.items()
        }
    return {name: _middle_moments(moments, aggregation) for name, moments in parts.items()}


def _rule(rule: NormMerge, absolute: bool) -> Merge:
    if rule == "paper":
        return "paper"
    if absolute:
        return "absolute" if rule == "exact" else "folded"
    return "pooled"


def _middle_moments(parts: Sequence[Moments], aggregation: Aggregation) -> Moments:
    mean, variance = (
        middle(np.stack(values), aggregation)
        for values in ([part.mean for part in parts], [part.variance for part in parts])
    )
    return Moments.from_variance(sum(part.n for part in parts), mean, variance)


def as_stats(norms: NormMoments) -> Weights:
    """Return moments as running statistics by buffer name, float32 [channels]."""
    stats = {}
    for name, moments in norms.items():
        stats[f"{name}.running_mean"] = moments.mean.astype(np.float32)
        stats[f"{name}.running_var"] = moments.variance.astype(np.float32)
    return stats


def as_moments(stats: Weights, examples: float) -> NormMoments:
    """Read running statistics as moments of `examples` samples; the inverse of `as_stats`."""
    return {
        name: Moments.from_variance(
            examples, stats[f"{name}.running_mean"], stats[f"{name}.running_var"]
        )
        for name in norm_names(stats)
    }


def norm_names(stats: Iterable[str]) -> tuple[str, ...]:
    """Return the norms that running statistics belong to, in their order."""
    suffix = ".running_mean"
    return tuple(name.removesuffix(suffix) for name in stats if name.endswith(suffix))


_LEAST_VARIANCE = 1e-5
"""Added to variances, as norm layers do: a channel without any spread has a logarithm too."""


def relative_stats(stats: Weights, base: Weights) -> Weights:
    """Return statistics by how they differ from others of the same norms, in units of their own.

    A variance by log2 of their quotient; a mean by the difference over the root of both variances'
    sum. So few bits tell what matters to a norm layer, whatever the scale of its channels; 0 is no
    difference. What is NaN or infinite stays so.
    """
    found = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name, own, other in _pairs(stats, base):
            quotient = (own.variance + _LEAST_VARIANCE) / (other.variance + _LEAST_VARIANCE)
            found[name] = Moments(1, (own.mean - other.mean) / _unit(own, other), np.log2(quotient))
        return as_stats(found)


def absolute_stats(relative: Weights, base: Weights) -> Weights:
    """Invert `relative_stats`; numbers that are too large come back infinite or NaN."""
    found = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name, own, other in _pairs(relative, base):
            variance = (other.variance + _LEAST_VARIANCE) * np.exp2(own.variance) - _LEAST_VARIANCE
            found[name] = Moments(1, other.mean, np.maximum(variance, 0))
            shift = own.mean * _unit(found[name], other)
            found[name] = replace(found[name], mean=other.mean + shift)
        return as_stats(found)


def _pairs(stats: Weights, base: Weights) -> Iterator[tuple[str, Moments, Moments]]:
    own, others = as_moments(stats, 1), as_moments(base, 1)
    return ((name, own[name], others[name]) for name in own)


def _unit(one: Moments, other: Moments) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(one.variance + other.variance + _LEAST_VARIANCE))


def with_norms(candidate: ModelState, norms: NormMoments) -> ModelState:
    """Return the candidate with re-estimated statistics."""
    return replace(candidate, stats={**candidate.stats, **as_stats(norms)})


def merge_losses(
    losses: Sequence[Sequence[float]],
    examples: Sequence[int],
    aggregation: Aggregation = "mean",
    worst: float = math.inf,
) -> NDArray[np.float64]:
    """Return the mean loss per candidate, weighted by examples or robust, float64 [candidates].

    Args:
        losses: Per device the loss of each candidate, [devices][candidates]. A device with
            `worst` for all of them cannot tell them apart, and does not count.
        examples: Development examples per device, [devices].
        aggregation: How devices' losses merge.
        worst: What stands for a loss that is not a number.
    """
    told, counts = np.asarray(losses, np.float64), np.asarray(examples, np.float64)
    says = (told < worst).any(axis=1)
    if says.any():
        told, counts = told[says], counts[says]
    if aggregation != "mean":
        return middle(told, aggregation)
    # One device after the other: a product of matrices adds in an order of its own everywhere.
    rows = (n * row for n, row in zip(counts, told, strict=True))
    return np.asarray(sum(rows, start=np.zeros(told.shape[1])) / counts.sum())


def best_candidate(losses: NDArray[np.float64]) -> int:
    """Return the candidate of the lowest loss; the first one wins a tie."""
    return int(np.argmin(losses))
