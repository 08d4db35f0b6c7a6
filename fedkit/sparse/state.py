"""The sparse state of a model: weights, statistics and masks by name.

What computes with dense arrays holds dicts of them. What travels, what the sparse engine returns
and what a server merges are `KeptWeights` and `PackedMasks`, which hold kept values and a bit per
weight; looked up by name they give the same dense arrays, each made for the occasion. Functions
here take both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedkit.sparse.kept import KeptWeights
from fedkit.sparse.packed import packed

Weights = Mapping[str, NDArray[np.float32]]
"""Trainable parameters by name, in the model's order: dense arrays, or `KeptWeights`."""

Masks = Mapping[str, NDArray[np.bool_]]
"""Per prunable parameter, True where the weight is kept; bool of its shape, or `PackedMasks`."""


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


def apply_masks(weights: Weights, masks: Masks) -> Weights:
    """Return weights that are exactly +0 wherever a mask is False; dense ones are so again."""
    if isinstance(weights, KeptWeights):
        return weights.under(packed(masks))
    return {
        name: np.where(masks[name], value, np.float32(0)) if name in masks else value
        for name, value in weights.items()
    }


def same_masks(one: Masks, other: Masks) -> bool:
    """Return whether two sets of masks keep the same weights."""
    return one is other or packed(one).alike(packed(other))


def density(masks: Masks) -> float:
    """Return kept / all prunable weights; 1 when nothing is prunable."""
    bits = packed(masks)
    total = sum(map(bits.size, bits))
    return sum(bits.counts.values()) / total if total else 1.0


def count_kept(masks: Masks) -> dict[str, int]:
    """Return the number of kept weights per layer."""
    return dict(packed(masks).counts)


def masks_digest(masks: Masks) -> str:
    """Return 16 hex digits that name these masks, so that two sides can compare them."""
    digest, bits = hashlib.sha256(), packed(masks)
    for name, of_layer in bits.bits.items():
        digest.update(f"{name}{bits.shapes[name]}".encode())
        digest.update(of_layer.tobytes())
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
