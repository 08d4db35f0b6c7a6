"""Masks from scores: which weights are kept, when each has one number that says how much it counts.

Order everywhere: larger |score| first, equal ones by lower position, layers in the model's order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ConfigError
from fedkit.sparse.bits import from_positions
from fedkit.sparse.distribution import exempt_layers
from fedkit.sparse.kept import KeptWeights, shapes_of
from fedkit.sparse.packed import PackedMasks
from fedkit.sparse.state import Masks
from fedkit.sparse.topk import largest

Scores = Mapping[str, NDArray[np.floating[Any]]]
"""A finite score per weight, by layer; shape of the parameter."""

_LEAST = 1e-300  # Less than any float32 that is not 0.


def kept_first(scores: Scores, masks: Masks) -> dict[str, NDArray[np.float64]]:
    """Return |scores| under which a kept weight of score 0 comes before every pruned one.

    Args:
        scores: A score per weight, 0 where it is pruned.
        masks: Which weights are kept, of the same layers.
    """
    return {n: np.abs(scores[n]).astype(np.float64) + _LEAST * mask for n, mask in masks.items()}


def layer_masks(scores: Scores, counts: Mapping[str, int]) -> PackedMasks:
    """Keep the `counts[layer]` largest |scores| of each layer named in `counts`.

    Args:
        scores: A score per weight; of `KeptWeights`, pruned weights have 0.
        counts: Weights to keep, of some layers.
    """
    known = shapes_of(scores)
    shapes = {name: known[name] for name in counts}
    bits = {
        name: from_positions(_largest_of(scores, name, count), math.prod(shapes[name]))
        for name, count in counts.items()
    }
    return PackedMasks(shapes, bits)


def _largest_of(scores: Scores, name: str, count: int) -> NDArray[np.int64]:
    if isinstance(scores, KeptWeights):
        found = _largest_kept(scores, name, count)
        if found is not None:
            return found
    return largest(scores[name].reshape(-1), count)


def _largest_kept(scores: KeptWeights, name: str, count: int) -> NDArray[np.int64] | None:
    """Return the largest among what is kept; None where a pruned weight could come before it."""
    values = scores.kept[name]
    if name not in scores.masks or count > len(values):
        return None
    chosen = largest(values, count)
    if (values[chosen] == 0).any():
        return None
    return scores.masks.positions(name)[chosen]


def global_masks(
    scores: Scores, count: int, exempt: Sequence[str] = (), keep: Masks | None = None
) -> Masks:
    """Keep the `count` largest |scores| of all layers together.

    Each layer keeps at least its best weight, since a layer without any would cut the model off
    from its input; exempt layers are kept whole and count.

    Args:
        scores: A score per prunable weight; all layers, in the model's order.
        count: Weights to keep in all.
        exempt: Layers kept whole, as in `exempt_layers`.
        keep: Weights kept whatever their score.

    Raises:
        ConfigError: `count` cannot hold the exempt layers and one weight in every other one, or a
            score is NaN or infinite.
    """
    flat = {name: np.abs(score.reshape(-1)) for name, score in scores.items()}
    whole = exempt_layers(list(scores), exempt)
    for name, score in flat.items():
        if not np.isfinite(score).all():
            raise ConfigError(
                f"scores of {name} hold NaN or infinite values, so no weight of it is larger than "
                "another; lower lr, or check the data they were computed on"
            )
    first = {name: _certain(name, s, name in whole, keep) for name, s in flat.items()}
    spare = count - sum(int(mask.sum()) for mask in first.values())
    if spare < 0:
        raise ConfigError(
            f"{count} kept weights cannot hold the exempt layers and one weight in each other "
            f"layer, which need {count - spare}; raise density or exempt less"
        )
    joined, taken = np.concatenate(list(flat.values())), np.concatenate(list(first.values()))
    free = np.flatnonzero(~taken)
    taken[free[largest(joined[free], spare)]] = True
    parts = np.split(taken, np.cumsum([len(score) for score in flat.values()])[:-1])
    return {name: part.reshape(scores[name].shape) for name, part in zip(flat, parts, strict=True)}


def _certain(
    name: str, score: NDArray[np.floating[Any]], whole: bool, keep: Masks | None
) -> NDArray[np.bool_]:
    """Return what a layer keeps in any case, flat: all, or what is asked for, or its best."""
    mask = np.full(len(score), whole)
    if keep is not None:
        mask |= keep[name].reshape(-1)
    if not mask.any():
        mask[largest(score, 1)] = True
    return mask
