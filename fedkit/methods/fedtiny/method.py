"""FedTiny as a row: adaptive BN selection makes the first model, progressive pruning changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedkit.config import RunConfig
from fedkit.methods.exact_norms import exact_statistics
from fedkit.methods.fedtiny.progressive import merge_entries, quotas, swap
from fedkit.methods.interface import (
    Aggregated,
    LocalRound,
    Method,
    Opened,
    Opening,
    Request,
    Trained,
    send_whole,
    whole_model,
)
from fedkit.methods.schedule import adjusting_block, block_count, block_quotas, pool_for
from fedkit.methods.server_training import prune_gradually
from fedkit.sparse.adjustment import blocks
from fedkit.sparse.candidates import CandidatePool, prune_at_once
from fedkit.sparse.state import Masks, ModelState, Weights
from fedkit.stats.norms import NormMerge, as_stats, best_candidate, merge_losses, merge_norms
from fedkit.wire import messages
from fedkit.wire.messages import Packet
from fedkit.wire.validation import admit_losses, admit_moments


def start(opening: Opening) -> Opened:
    """Let candidates compete on the devices, under re-estimated or the server's statistics."""
    config = opening.config

    def prune(dense: ModelState, counts: Mapping[str, int]) -> ModelState:
        if config.pruning == "once":
            return opening.tuned(prune_at_once(dense, counts))
        return prune_gradually(config, opening.engine, dense, counts, opening.server_data)

    if config.selection == "none":
        return send_whole(prune(opening.dense, opening.counts))
    packed = messages.narrow(
        messages.pack_pool(pool_for(config, opening.dense, prune)), config.wire
    )
    # As the devices have it: rounding moves thresholds between candidates.
    pool = messages.read_pool(packed, opening.engine.layout)
    if config.selection == "adaptive":
        stats = _reestimated(opening, pool)
        request = Request(
            lambda: messages.pack_pool_with_stats(pool, stats), messages.pack_stats(stats)
        )
    else:
        stats = [pool.union.stats] * len(pool)
        request = Request(lambda: messages.pack_pool(pool))
    answers = opening.fleet.exchange(
        "losses", request, lambda reply: admit_losses(reply, config, len(pool))
    )
    read, examples = zip(*answers, strict=True)
    losses = merge_losses(read, examples, config.aggregation, messages.LARGEST)
    chosen = best_candidate(losses)
    winner = pool.candidate(chosen)
    state = ModelState(winner.weights, stats[chosen], winner.masks)
    # A device has every candidate already, so the first message to train names one.
    named = Packet({}, {"candidate": chosen})
    return Opened(state, replace(whole_model(state), short=named), float(losses[chosen]))


def _reestimated(opening: Opening, pool: CandidatePool) -> Sequence[Weights]:
    """Return the merged statistics of each candidate, as the devices' data has them."""
    layout, config = opening.engine.layout, opening.config
    if config.bn_merge == "exact" and layout.stats:
        return exact_statistics(
            config, opening.engine, opening.input_shape, opening.fleet, pool, number=0
        )
    rule: NormMerge = "paper" if config.bn_merge == "paper" else "pooled"
    moments = opening.fleet.exchange(
        "moments",
        Request(lambda: messages.pack_pool(pool)),
        lambda reply: admit_moments(reply, layout, pool.union.stats, config, len(pool)),
    )
    return [
        as_stats(merge_norms(norms, rule, config.aggregation, opening.engine.absolute_norms))
        for norms in zip(*moments, strict=True)
    ]


def local(round_: LocalRound, state: ModelState) -> Trained:
    """Train; in an adjusting round report the largest gradients of the block's pruned weights."""
    trained, loss = round_.train(state)
    if not round_.layers:
        return Trained(trained, loss)
    amounts = block_quotas(round_.config, trained.masks, round_.layers, round_.number)
    return Trained(trained, loss, round_.engine.top_gradients(trained, round_.sample, amounts))


def adjust(end: Aggregated) -> ModelState:
    """Swap weights of the block by the devices' merged gradients; no block, no change."""
    block = adjusting_block(end.config, list(end.sent), end.number)
    if not block:
        return end.state
    gradients = merge_entries(
        [update.gradients for update in end.updates], end.shares, end.config.aggregation
    )
    return swap(end.state, gradients, block_quotas(end.config, end.sent, block, end.number))


def buffer_bytes(config: RunConfig, masks: Masks) -> int:
    """Bytes of the largest top-k buffer: a float32 value and an int32 position per entry."""
    divided = blocks(list(masks), block_count(config, list(masks)))
    return 8 * max(sum(_largest_quotas(config, masks, block)) for block in divided)


def _largest_quotas(config: RunConfig, masks: Masks, block: Sequence[str]) -> list[int]:
    return list(quotas(masks, block, 0, 1, config.adjust_share).values())


FEDTINY = Method(
    "FedTiny: adaptive BN selection and progressive pruning (Huang et al., 2023)",
    start,
    local,
    adjusting_block,
    adjust,
    score_bytes=buffer_bytes,
    selects=True,
)


def _without(what: str, **settings: object) -> Method:
    return replace(FEDTINY, about=f"FedTiny {what}", settings=settings, ablation_of="fedtiny")


METHODS = {
    "fedtiny": FEDTINY,
    "fedtiny-once": _without("pruning the dense start at once", pruning="once"),
    "fedtiny-uniform": _without("around uniform layer densities", distribution="uniform"),
    "fedtiny-vanilla": _without("ranking under the server's statistics", selection="vanilla"),
    "fedtiny-no-selection": _without("without selection", selection="none"),
    "fedtiny-no-progressive": _without("without progressive pruning", adjust_share=0.0),
    "fedtiny-entire": _without("adjusting the whole model at once", granularity="entire"),
}
