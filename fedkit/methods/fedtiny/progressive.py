"""Progressive pruning: masks follow the data, one block at a time, at constant density."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import WireError
from fedkit.sparse.adjustment import quota
from fedkit.sparse.bits import from_positions
from fedkit.sparse.kept import kept_weights
from fedkit.sparse.packed import packed
from fedkit.sparse.state import Masks, ModelState
from fedkit.sparse.topk import Entries, largest
from fedkit.stats.robust import Aggregation, middle


def quotas(
    masks: Masks, layers: Sequence[str], step: int, last_step: int, alpha: float
) -> dict[str, int]:
    """Return how many weights each layer of the block swaps; devices and server agree on it."""
    bits = packed(masks).only(layers)
    kept = bits.counts
    return {
        name: quota(kept[name], bits.size(name) - kept[name], step, last_step, alpha)
        for name in layers
    }


def merge_entries(
    devices: Sequence[Mapping[str, Entries]],
    shares: Sequence[float],
    aggregation: Aggregation = "mean",
) -> dict[str, Entries]:
    """Average sparse gradients: g = sum_k share_k * g_k, entries not sent count as zero.

    Sums are of float64, in the order of the devices; their results are float32.

    Args:
        devices: Per device the sent entries of each layer, in a fixed order of devices.
        shares: |D_k| / |D| per device.
        aggregation: Robust rules take the middle of each entry instead; what most devices did not
            send is 0 then, and is left out.
    """
    if aggregation != "mean":
        return {
            name: _middle_entries([d[name] for d in devices], aggregation) for name in devices[0]
        }
    merged = {}
    for name in devices[0]:
        scaled = [
            device[name].values.astype(np.float64) * share
            for device, share in zip(devices, shares, strict=True)
        ]
        indices = [device[name].indices for device in devices]
        if all(np.array_equal(indices[0], other) for other in indices[1:]):
            unique, sums = indices[0], np.asarray(sum(scaled, start=np.zeros(len(indices[0]))))
        else:
            unique, where = np.unique(np.concatenate(indices), return_inverse=True)
            sums = np.bincount(where, np.concatenate(scaled), len(unique))
        merged[name] = Entries(unique, sums.astype(np.float32))
    return merged


def _middle_entries(devices: Sequence[Entries], aggregation: Aggregation) -> Entries:
    union = np.unique(np.concatenate([device.indices for device in devices]))
    values = np.zeros((len(devices), len(union)))
    for row, device in zip(values, devices, strict=True):
        row[np.searchsorted(union, device.indices)] = device.values
    merged = middle(values, aggregation).astype(np.float32)
    return Entries(union[merged != 0], merged[merged != 0])


def swap(
    state: ModelState, gradients: Mapping[str, Entries], amounts: Mapping[str, int]
) -> ModelState:
    """Grow the largest gradients among the pruned, drop the smallest weights among the kept.

    Grown weights start at exactly 0. Only weights kept before the adjustment are dropped, and as
    many as were grown, so the density stays what it was.

    Args:
        state: The aggregated model.
        gradients: Merged gradients of pruned weights, per layer of the block.
        amounts: Largest number of weights to swap, per layer.

    Raises:
        WireError: A gradient belongs to a kept weight.
    """
    masks, weights = packed(state.masks), kept_weights(state.weights, state.masks)
    bits = {}
    for name, entries in gradients.items():
        if masks.at(name, entries.indices).any():
            # To grow what is kept would drop a weight for nothing, and so change the density.
            raise WireError(f"{name} has gradients of kept weights; only pruned ones can grow")
        amount = min(amounts[name], len(entries.indices))
        kept = _swap_layer(weights.kept[name], masks.positions(name), entries, amount)
        bits[name] = from_positions(kept, masks.size(name))
    return ModelState(weights, state.stats, masks).with_masks(masks.changed(bits))


def _swap_layer(
    values: NDArray[np.float32], kept: NDArray[np.int64], entries: Entries, amount: int
) -> NDArray[np.int64]:
    """Return the positions kept after a swap, given those before it and their values."""
    smallest_first = np.argsort(np.abs(values), kind="stable")
    stay = np.delete(kept, smallest_first[:amount])
    grown = entries.indices[largest(entries.values, amount)]
    return np.sort(np.concatenate([stay, grown]))
