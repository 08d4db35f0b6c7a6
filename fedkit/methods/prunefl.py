"""PruneFL: adaptive pruning by squared gradients of ALL weights, which devices compute and send.

Source: Jiang et al., "Model Pruning Enables Efficient Federated Learning on Edge Devices", 2022.
The server prunes first, on its own data. In every local step a device computes the gradient of each
weight, pruned or not; a round's sum, squared and times its examples, adds to what the device keeps
until the next adjustment, then all of it travels. The server adds up what the devices send, keeps
the largest weights of each layer and fills up with the largest sums of all layers together.

Two things differ from the paper, so that methods do the same work: all weights count as equally
fast, and the density is the target from the start instead of whatever the time model prefers.
Adjustments come when FedTiny's do, and after the last one nobody computes what nobody asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedkit.config import RunConfig
from fedkit.engine.base import GradientSums
from fedkit.methods.fedtiny.progressive import merge_entries
from fedkit.methods.interface import (
    Aggregated,
    LocalRound,
    Method,
    Opening,
    Trained,
    static,
    train_only,
)
from fedkit.methods.schedule import adjusts_in, last_adjusting_round, swapped_share
from fedkit.sparse.counts import exact
from fedkit.sparse.masks import global_masks, kept_first, layer_masks
from fedkit.sparse.state import Masks, ModelState, Weights, count_kept
from fedkit.sparse.topk import Entries


def prunefl_masks(opening: Opening) -> Masks:
    """Prune on the server, by magnitude and by gradients of its own examples."""
    examples = opening.sample(opening.config.adjust_examples)
    squares = {n: g**2 for n, g in opening.engine.gradients(opening.dense, examples).items()}
    share, exempt = exact(opening.config.adjust_share), opening.config.exempt_layers
    return reconfigure(opening.dense, opening.counts, squares, share, exempt)


def reconfigure(
    state: ModelState,
    counts: Mapping[str, int],
    squares: Weights,
    share: Fraction,
    exempt: Sequence[str] = (),
) -> Masks:
    """Keep `1 - share` of `counts` per layer by magnitude, the rest by squares over all layers."""
    stay = {name: math.floor((1 - share) * count) for name, count in counts.items()}
    largest = layer_masks(kept_first(state.weights, state.masks), stay)
    return global_masks(squares, sum(counts.values()), exempt, keep=largest)


def local(round_: LocalRound, state: ModelState) -> Trained:
    """Train, and add this round's squared gradients to those kept; send them when it is time."""
    if round_.number > last_adjusting_round(round_.config):
        return train_only(round_, state)
    sums: GradientSums = {}
    trained, loss = round_.train(state, gradient_sums=sums)
    examples = round_.config.epochs * len(round_.examples)
    squares = {n: round_.kept.get(n, np.float32(0)) + s**2 * examples for n, s in sums.items()}
    if not round_.layers:
        return Trained(trained, loss, kept=squares)
    every = {name: squares[name].reshape(-1) for name in round_.layers}
    return Trained(trained, loss, {n: Entries(np.arange(len(v)), v) for n, v in every.items()})


def all_layers(config: RunConfig, prunable: Sequence[str], number: int) -> list[str]:
    """Return every layer in an adjusting round."""
    return list(prunable) if adjusts_in(config, number) else []


def adjust(end: Aggregated) -> ModelState:
    """Make new masks of equal density; a grown weight starts at 0."""
    if not adjusts_in(end.config, end.number):
        return end.state
    # Examples are in the squares already, so that they add up without the devices' shares.
    merged = merge_entries(
        [update.gradients for update in end.updates],
        [1.0] * len(end.updates),
        end.config.aggregation,
    )
    squares = {name: _dense(merged[name], mask.shape) for name, mask in end.sent.items()}
    share = swapped_share(end.config, end.number)
    counts, exempt = count_kept(end.sent), end.config.exempt_layers
    return end.state.with_masks(reconfigure(end.state, counts, squares, share, exempt))


def _dense(entries: Entries, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return entries in their places; robust merging leaves zeros out."""
    values = np.zeros(math.prod(shape), np.float32)
    values[entries.indices] = entries.values
    return values.reshape(shape)


def dense_bytes(config: RunConfig, masks: Masks) -> int:
    """Bytes of a float32 score per prunable weight."""
    del config
    return 4 * sum(mask.size for mask in masks.values())


PRUNEFL = Method(
    "PruneFL-like: masks by squared gradients of all weights (Jiang et al., 2022)",
    static(prunefl_masks),
    local,
    all_layers,
    adjust,
    entries="all",
    score_bytes=dense_bytes,
)
METHODS = {"prunefl": PRUNEFL}
