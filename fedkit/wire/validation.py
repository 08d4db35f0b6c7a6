"""What a server lets in: a reply is read whole, and measured against what was sent.

Shapes, types, positions and digests are checked by the readers of `fedkit.wire.messages`. What is
left are numbers that fit and would spoil the model all the same, or end the run where they are
used: whatever a later step assumes of a reply is checked here, where its device can be named. What
is merged of admitted replies is then finite, and can travel again in the run's width:

- weights, entries and scores are at most `messages.LARGEST`, as means and sums of them are below
  what float32 ends at; with fp16, weights and means of norms are at most float16's 65,504;
- a variance plus the square of how far its mean is from the one that was sent is bounded alike. Of
  merged statistics that sum is the mean of the devices', and a pooled variance is never more.

The bounds are wide: they end what no training does, and leave to robust aggregation
(`fedkit.stats.robust`) what they cannot tell from an odd but honest device. Within them a device
can still spoil a mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.config import RunConfig
from fedkit.core.errors import WireError
from fedkit.sparse.kept import kept_weights
from fedkit.sparse.layout import Layout
from fedkit.sparse.packed import PackedMasks, packed
from fedkit.sparse.state import ModelState, Shapes, Weights, count_kept
from fedkit.sparse.topk import Entries
from fedkit.stats.moments import NormMoments
from fedkit.stats.norms import as_moments, as_stats
from fedkit.wire import messages
from fedkit.wire.messages import LARGEST, Packet, Update

Coverage = Literal["pruned", "all", "any"]
"""Which weights of a layer have entries in a reply: some pruned ones, every one, or any."""

_STATISTICS = 100
"""How much more statistics may move than weights: those of an untrained model say nothing yet."""


def largest_reply(layout: Layout, config: RunConfig) -> int:
    """Return the bytes that no reply of this run exceeds: twice a model with all its statistics."""
    weights, stats = (
        sum(math.prod(shape) for shape in shapes.values())
        for shapes in (layout.weights, layout.stats)
    )
    return 65536 + 16 * weights + 16 * stats * config.candidates


# Before training ----------------------------------------------------------------------------


def admit_moments(
    packet: Packet, layout: Layout, sent: Weights, config: RunConfig, candidates: int
) -> list[NormMoments]:
    """Read the moments of each candidate's norm layers, or refuse them.

    Args:
        packet: The reply.
        layout: The model's layout.
        sent: The statistics that all candidates were sent with.
        config: The run.
        candidates: How many there are.

    Raises:
        WireError: They do not fit the model, or break a bound.
    """
    _examples(packet, config)
    found = messages.read_moments(packet, layout, candidates)
    for norms in found:
        _check_statistics(as_stats(norms), sent, config)
    return found


def admit_losses(packet: Packet, config: RunConfig, candidates: int) -> tuple[list[float], int]:
    """Read the loss of each candidate and the number of examples behind it, or refuse them.

    Raises:
        WireError: They are not one finite number per candidate, or too large.
    """
    losses, _ = messages.read_losses(packet, candidates)
    _check_size("losses", np.array(losses), LARGEST)
    return losses, _examples(packet, config)


def admit_scores(packet: Packet, shapes: Shapes, config: RunConfig) -> tuple[Weights, int]:
    """Read a score per prunable weight and the number of examples behind it, or refuse them.

    Raises:
        WireError: They do not fit the model, or one is too large.
    """
    scores, _ = messages.read_scores(packet, shapes)
    for name, values in scores.items():
        _check_size(f"scores of {name}", values, LARGEST)
    return scores, _examples(packet, config)


# A metric on devices' own data ---------------------------------------------------------------


def admit_value(packet: Packet, number: int) -> float | None:
    """Read a device's value of the metric, None where it has none; or refuse it.

    Raises:
        WireError: It is not of this round, or not a number within bounds.
    """
    _check_round(packet, number)
    return messages.read_value(packet)


# Training -----------------------------------------------------------------------------------


def admit_update(
    packet: Packet,
    layout: Layout,
    sent: ModelState,
    config: RunConfig,
    number: int,
    layers: Sequence[str],
    own_masks: bool,
    entries: Coverage = "pruned",
) -> Update:
    """Read the reply to a message to train, or refuse it.

    Args:
        packet: The reply.
        layout: The model's layout.
        sent: The model as the device read it.
        config: The run.
        number: The round that was asked for.
        layers: Layers of which it must hold entries.
        own_masks: Whether it may have masks of its own.
        entries: Which weights of those layers must have entries.

    Raises:
        WireError: It does not fit the model or the round, or breaks a bound.
    """
    _check_round(packet, number)
    _examples(packet, config)
    update = messages.read_update(packet, layout, sent, layers, own_masks, config.uplink_bits)
    _check_size("its loss", np.array(update.loss), LARGEST)
    own, before = packed(update.state.masks), packed(sent.masks)
    union = own.union(before)
    found, known = (kept_weights(s.weights, union).kept for s in (update.state, sent))
    for name, values in found.items():
        _check_size(name, values, _widest(config))
    _check_statistics(update.state.stats, sent.stats, config)
    if config.max_change:
        _check_change("weights", found, known, config.max_change)
    if own_masks:
        _check_density(update.state, sent)
    _check_entries(update, before, entries)
    return update


def _check_round(packet: Packet, number: int) -> None:
    if messages.read_count(packet, "round") != number:
        raise WireError(
            f"a reply to round {packet.numbers['round']} came in round {number}; it is late or "
            "repeated, and is left out"
        )


def _examples(packet: Packet, config: RunConfig) -> int:
    examples = messages.read_count(packet, "examples")
    if 0 < config.max_examples < examples:
        raise WireError(
            f"a device claims {examples} examples; this run admits {config.max_examples} "
            "of each: raise max_examples if that is true"
        )
    return examples


def _widest(config: RunConfig) -> float:
    """Return the largest number that the run can send on."""
    return float(np.finfo(np.float16).max) if config.wire == "fp16" else LARGEST


def _check_size(what: str, values: NDArray[np.floating[Any]], limit: float) -> None:
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= limit:
        raise WireError(
            f"{what} is up to {largest:.4g}; {limit:.4g} is admitted: lower lr of the sender, or "
            "look at what it computes"
        )


def _check_statistics(found: Weights, sent: Weights, config: RunConfig) -> None:
    """Refuse statistics that moved too far, or that nobody could be sent once they are merged."""
    if config.max_change:
        _check_change("norm statistics", found, sent, _STATISTICS * config.max_change)
    limit, before = _widest(config), as_moments(sent, 1)
    for name, moments in as_moments(found, 1).items():
        _check_size(f"the mean of {name}", moments.mean, limit)
        spread = moments.variance + np.square(moments.mean - before[name].mean)
        if spread.max(initial=0.0) > limit:
            raise WireError(
                f"{name} has a spread of {spread.max():.4g} around the mean that was sent; "
                f"{limit:.4g} is admitted with wire {config.wire!r}: set wire to fp32, or scale "
                "the inputs of the sender"
            )


def _check_change(what: str, found: Weights, sent: Weights, limit: float) -> None:
    """Refuse what moved by more than `limit` norms of what was sent; below 1 a norm counts as 1."""
    change = _norm({name: found[name].astype(np.float64) - sent[name] for name in sent})
    allowed = limit * max(1.0, _norm(sent))
    if not change <= allowed:
        raise WireError(
            f"{what} changed by {change:.4g} in one round; {allowed:.4g} is admitted, "
            f"{limit:g} times the norm of what was sent: lower lr of the sender, or raise "
            "max_change"
        )


def _norm(values: Weights) -> float:
    squares = (np.square(value, dtype=np.float64).sum() for value in values.values())
    return float(np.sqrt(sum(squares, start=np.float64(0))))


def _check_density(state: ModelState, sent: ModelState) -> None:
    kept, allowed = (sum(count_kept(masks).values()) for masks in (state.masks, sent.masks))
    if kept > allowed:
        raise WireError(
            f"a device keeps {kept} weights of its own choice, more than the {allowed} it was sent"
        )


def _check_entries(update: Update, sent: PackedMasks, coverage: Coverage) -> None:
    """Refuse entries of other weights than the method asks for, or too large ones."""
    for name, entries in update.gradients.items():
        _check_size(f"an entry of {name}", entries.values, LARGEST)
        _check_coverage(name, entries, sent, coverage)


def _check_coverage(name: str, entries: Entries, sent: PackedMasks, coverage: Coverage) -> None:
    if coverage == "pruned" and (wrong := int(sent.at(name, entries.indices).sum())):
        # To grow what is kept would drop a weight for nothing, and so change the density.
        raise WireError(
            f"{name} has {wrong} entries of kept weights; only pruned ones can grow: the device "
            "runs another method, or its reply was altered"
        )
    if coverage == "all" and len(entries.indices) != sent.size(name):
        raise WireError(
            f"{name} has entries of {len(entries.indices)} of {sent.size(name)} weights; this "
            "method needs one of each: the device runs another method, or its reply was altered"
        )
