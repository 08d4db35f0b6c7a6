"""A slow, obvious merge: one weight after another, in Python's numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedkit.sparse.state import ModelState


def mean_over_keepers(states: Sequence[ModelState], shares: Sequence[float]) -> ModelState:
    """Return the mean of each weight over the devices that keep it, their shares added up anew.

    As `fedkit.server.aggregation` does, the mean over all devices is rounded to float32 first, and
    where all keep the same weights of a layer, nothing is divided.
    """
    weights = {n: np.zeros_like(value) for n, value in states[0].weights.items()}
    masks = {n: np.zeros_like(mask) for n, mask in states[0].masks.items()}
    for name, merged in weights.items():
        own = [state.masks.get(name, np.ones_like(merged, np.bool_)) for state in states]
        alike = all(np.array_equal(mask, own[0]) for mask in own)
        for place in np.ndindex(merged.shape):
            total = kept = 0.0
            for state, mask, share in zip(states, own, shares, strict=True):
                total += float(state.weights[name][place]) * share
                kept += bool(mask[place]) * share
            merged[place] = total
            if not alike and kept:
                merged[place] = float(merged[place]) / kept
            if name in masks:
                masks[name][place] = any(mask[place] for mask in own)
    return ModelState(weights, {}, masks)
