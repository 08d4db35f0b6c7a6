"""How the devices' models become the server's next one."""

from __future__ import annotations

import functools
from collections.abc import Container, Sequence

import numpy as np
from numpy.typing import NDArray

from fedkit.config import RunConfig
from fedkit.sparse.kept import KeptWeights, kept_weights
from fedkit.sparse.packed import PackedMasks, packed
from fedkit.sparse.state import ModelState, Weights, weighted_mean
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
    own = [packed(update.state.masks) for update in updates]
    masks = functools.reduce(PackedMasks.union, own)
    models = [kept_weights(update.state.weights, masks) for update in updates]
    if config.aggregation == "mean":
        values = _means(models, own, parts)
    else:
        values = _middles(models, own, config.aggregation)
    norms = [as_moments(update.state.stats, update.examples) for update in updates]
    rule: NormMerge = "paper" if config.bn_merge == "paper" else "pooled"
    stats = as_stats(merge_norms(norms, rule, config.aggregation, absolute))
    return ModelState(KeptWeights(models[0].shapes, masks, values), stats, masks)


def _means(
    models: Sequence[KeptWeights], own: Sequence[PackedMasks], parts: Sequence[float]
) -> Weights:
    """Return means over the keepers of each weight that any device keeps, flat."""
    values = dict(weighted_mean([model.kept for model in models], parts))
    union = models[0].masks
    for name in union:
        if not all(masks.same(union, name) for masks in own):
            where = union.positions(name)
            keepers = [masks.at(name, where) for masks in own]
            values[name] = _over_keepers(values[name], keepers, parts)
    return values


def _over_keepers(
    mean: NDArray[np.float32], keepers: Sequence[NDArray[np.bool_]], parts: Sequence[float]
) -> NDArray[np.float32]:
    """Scale means over all devices, where the others' weights are 0, to means over the keepers."""
    kept = sum((own * part for own, part in zip(keepers, parts, strict=True)), np.zeros(mean.shape))
    return np.divide(mean, kept, out=np.zeros(mean.shape), where=kept > 0).astype(np.float32)


def _middles(
    models: Sequence[KeptWeights], own: Sequence[PackedMasks], rule: Aggregation
) -> Weights:
    """Return robust means of each weight over the devices that keep it, flat."""
    union, merged = models[0].masks, {}
    for name in models[0]:
        values = np.stack([model.kept[name] for model in models]).astype(np.float64)
        if name in union:
            where = union.positions(name)
            values[~np.stack([masks.at(name, where) for masks in own])] = np.nan
        merged[name] = middle(values, rule).astype(np.float32)
    return merged
