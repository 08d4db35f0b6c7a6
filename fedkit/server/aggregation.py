"""How the devices' models become the server's next one."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
from numpy.typing import NDArray

from fedkit.config import RunConfig
from fedkit.sparse.state import Masks, ModelState, Weights, apply_masks, weighted_mean
from fedkit.stats.norms import NormMerge, as_moments, as_stats, merge_norms
from fedkit.stats.robust import Aggregation, middle
from fedkit.wire.messages import Update


def shares(updates: Sequence[Update]) -> list[float]:
    """Return |D_k| / |D| per update."""
    total = sum(update.examples for update in updates)
    return [update.examples / total for update in updates]


def aggregate(
    config: RunConfig,
    updates: Sequence[Update],
    parts: Sequence[float],
    absolute: Container[str] = (),
) -> ModelState:
    """Merge the weights and the norm statistics of all devices by the config's rule.

    The mean is by sample count, in float64. A weight that not every device keeps is merged over
    those that do. In a private run each update counts as one of the devices asked, whatever
    `parts` are: who did not answer changed nothing (`fedkit.server.privacy`). `absolute` are the
    norms whose spread is a mean absolute deviation.
    """
    if config.dp_clip:
        parts = [1 / config.asked] * len(updates)
    states = [update.state for update in updates]
    masks = {name: _union([state.masks[name] for state in states]) for name in states[0].masks}
    if config.aggregation == "mean":
        weights = _means(states, masks, parts)
    else:
        weights = _middles(states, masks, config.aggregation)
    norms = [as_moments(update.state.stats, update.examples) for update in updates]
    rule: NormMerge = "paper" if config.bn_merge == "paper" else "pooled"
    stats = as_stats(merge_norms(norms, rule, config.aggregation, absolute))
    return ModelState(apply_masks(weights, masks), stats, masks)


def _union(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Return what any device keeps: the first mask itself where all are alike."""
    first = masks[0]
    if all(mask is first or np.array_equal(mask, first) for mask in masks):
        return first
    return np.asarray(np.logical_or.reduce(masks))


def _means(states: Sequence[ModelState], masks: Masks, parts: Sequence[float]) -> Weights:
    weights = dict(weighted_mean([state.weights for state in states], parts))
    for name, union in masks.items():
        if union is not states[0].masks[name]:
            own = [state.masks[name] for state in states]
            weights[name] = _over_keepers(weights[name], own, parts)
    return weights


def _over_keepers(
    mean: NDArray[np.float32], masks: Sequence[NDArray[np.bool_]], parts: Sequence[float]
) -> NDArray[np.float32]:
    """Scale means over all devices, where the others' weights are 0, to means over the keepers."""
    kept = sum((mask * part for mask, part in zip(masks, parts, strict=True)), np.zeros(mean.shape))
    return np.divide(mean, kept, out=np.zeros(mean.shape), where=kept > 0).astype(np.float32)


def _middles(states: Sequence[ModelState], masks: Masks, rule: Aggregation) -> Weights:
    """Return robust means of each weight over the devices that keep it."""
    weights = {}
    for name, first in states[0].weights.items():
        where = masks.get(name, np.ones(first.shape, np.bool_))
        values = np.stack([state.weights[name][where] for state in states]).astype(np.float64)
        if name in masks:
            kept = np.stack([state.masks[name][where] for state in states])
            values[~kept] = np.nan
        weights[name] = np.zeros(first.shape, np.float32)
        weights[name][where] = middle(values, rule)
    return weights
