"""FedDST: each device changes its own mask, and the server prunes what they agree on least.

Source: Bibikar et al., "Federated Dynamic Sparse Training: Computing Less, Communicating Less, Yet
Learning Better", 2022. In an adjusting round a device trains half of its epochs (rounded down),
drops its smallest weights and grows those of largest gradient, layer by layer, and trains the rest.
The server averages each weight over the devices that keep it, then prunes each layer by magnitude
back to its density. ERK layer densities, as published; adjustments come when FedTiny's do.
"""

from __future__ import annotations

from fedkit.config import RunConfig
from fedkit.methods.fedtiny.progressive import swap
from fedkit.methods.interface import Aggregated, LocalRound, Method, Trained, static, train_only
from fedkit.methods.random_masks import erk_masks
from fedkit.methods.schedule import block_quotas
from fedkit.sparse.counts import floor_share
from fedkit.sparse.masks import kept_first, layer_masks
from fedkit.sparse.state import Masks, ModelState, count_kept


def local(round_: LocalRound, state: ModelState) -> Trained:
    """Train; in an adjusting round change the own mask on the way."""
    if not round_.adjusts:
        return train_only(round_, state)
    before = round_.config.epochs // 2
    if before:
        state, _ = round_.train(state, before)
    amounts = block_quotas(round_.config, state.masks, list(state.masks), round_.number)
    gradients = round_.engine.top_gradients(state, round_.sample, amounts)
    moved = swap(state, gradients, amounts)
    return Trained(*round_.train(moved, round_.config.epochs - before, part=1))


def adjust(end: Aggregated) -> ModelState:
    """Prune the union of the devices' masks back to the density of each layer."""
    counts = count_kept(end.sent)
    if count_kept(end.state.masks) == counts:
        return end.state
    magnitudes = kept_first(end.state.weights, end.state.masks)
    return end.state.with_masks(layer_masks(magnitudes, counts))


def buffer_bytes(config: RunConfig, masks: Masks) -> int:
    """Bytes of the top-k buffer over all layers: a value and a position per entry."""
    return 8 * sum(floor_share(config.adjust_share, kept) for kept in count_kept(masks).values())


FEDDST = Method(
    "FedDST: devices change their own masks (Bibikar et al., 2022)",
    static(erk_masks),
    local,
    adjust=adjust,
    own_masks=True,
    score_bytes=buffer_bytes,
)
METHODS = {"feddst": FEDDST}
