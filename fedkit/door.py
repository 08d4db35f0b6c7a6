"""What a server lets in: a reply is read whole, and measured against what was sent.

Shapes, types, positions and digests are checked by the readers of `fedkit.messages`. What is left
are numbers that fit and would spoil the model all the same. The bounds are wide: they end what no
training does, and leave to robust aggregation (`fedkit.stats.robust`) what they cannot tell from an
odd but honest device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedkit import messages
from fedkit.config import RunConfig
from fedkit.engine.base import Layout
from fedkit.errors import WireError
from fedkit.messages import Packet, Update
from fedkit.sparse.state import ModelState, Weights, count_kept

_STATISTICS = 100
"""How much more statistics may move than weights: those of an untrained model say nothing yet."""


def largest_reply(layout: Layout, config: RunConfig) -> int:
    """Return the bytes that no reply of this run exceeds: twice a model with all its statistics."""
    weights, stats = (
        sum(math.prod(shape) for shape in shapes.values())
        for shapes in (layout.weights, layout.stats)
    )
    return 65536 + 16 * weights + 16 * stats * config.candidates


def admit_update(
    packet: Packet,
    layout: Layout,
    sent: ModelState,
    config: RunConfig,
    number: int,
    layers: Sequence[str],
    own_masks: bool,
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

    Raises:
        WireError: It does not fit the model or the round, or breaks a bound of the config.
    """
    if messages.read_count(packet, "round") != number:
        raise WireError(
            f"a reply to round {packet.numbers['round']} came in round {number}; it is late or "
            "repeated, and is left out"
        )
    update = messages.read_update(packet, layout, sent, layers, own_masks, config.uplink_bits)
    if 0 < config.max_examples < update.examples:
        raise WireError(
            f"a device claims {update.examples} examples; this run admits {config.max_examples} "
            "of each: raise max_examples if that is true"
        )
    if config.max_change:
        _check_change("weights", update.state.weights, sent.weights, config.max_change)
        limit = _STATISTICS * config.max_change
        _check_change("norm statistics", update.state.stats, sent.stats, limit)
    if own_masks:
        _check_density(update.state, sent)
    return update


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
