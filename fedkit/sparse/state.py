"""The sparse state of a model: weights, statistics and masks as plain numpy arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = Mapping[str, NDArray[np.float32]]
"""Trainable parameters by name, in the model's order."""

Masks = Mapping[str, NDArray[np.bool_]]
"""Per prunable parameter, True where the weight is kept; shape of the parameter."""


Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each of some parameters, in the model's order."""


@dataclass(frozen=True)
class ModelState:
    """One model, as it travels and is stored.

    Attributes:
        weights: Every trainable parameter; exactly 0 where its mask is False.
        stats: Running statistics of the norm layers by buffer name, float32.
        masks: A mask per prunable parameter, in forward order.
    """

    weights: Weights
    stats: Weights
    masks: Masks

    def with_masks(self, masks: Masks) -> ModelState:
        """Return this state under other masks: kept weights stay, all others become 0."""
        return ModelState(apply_masks(self.weights, masks), self.stats, masks)

    @property
    def density(self) -> float:
        """Kept share of all prunable weights, counted from the masks."""
        return density(self.masks)


def apply_masks(weights: Weights, masks: Masks) -> dict[str, NDArray[np.float32]]:
    """Return weights that are exactly +0 wherever a mask is False."""
    return {
        name: np.where(masks[name], value, np.float32(0)) if name in masks else value
        for name, value in weights.items()
    }


def same_masks(one: Masks, other: Masks) -> bool:
    """Return whether two sets of masks keep the same weights."""
    return one is other or (
        one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)
    )


def density(masks: Masks) -> float:
    """Return kept / all prunable weights; 1 when nothing is prunable."""
    total = sum(mask.size for mask in masks.values())
    return sum(count_kept(masks).values()) / total if total else 1.0


def count_kept(masks: Masks) -> dict[str, int]:
    """Return the number of kept weights per layer."""
    return {name: int(mask.sum()) for name, mask in masks.items()}


def masks_digest(masks: Masks) -> str:
    """Return 16 hex digits that name these masks, so that two sides can compare them."""
    digest = hashlib.sha256()
    for name, mask in masks.items():
        digest.update(f"{name}{mask.shape}".encode())
        digest.update(np.packbits(mask).tobytes())
    return digest.hexdigest()[:16]


def weighted_mean(parts: Sequence[Weights], weights: Sequence[float]) -> Weights:
    """Return the mean per parameter, summed in float64 in the order given, as float32."""
    return {
        name: sum(
            (part[name].astype(np.float64) * w for part, w in zip(parts, weights, strict=True)),
            start=np.zeros(parts[0][name].shape),
        ).astype(np.float32)
        for name in parts[0]
    }
