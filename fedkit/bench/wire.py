"""`fedkit bench wire`: what a FedTiny fleet with the real ResNet-18 sends, next to its bounds.

The messages are made by the functions a run uses, turned into Flower messages and counted as Flower
transfers them: candidate selection, then 100 rounds with a mask change every 10, every message in
each width of its values. Weights and gradients are random, since only masks decide the sizes.
Rounds between two changes send messages of equal size, so one of them is counted and multiplied.

`bytes_update_fp32` and `bytes_update_4bit` are the reply of one usual round, with whole values and
with ShiftQuant differences of 4 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.bench import markdown
from fedkit.config import RunConfig, make_config
from fedkit.engine.torch import TorchEngine
from fedkit.flower.client_app import MESSAGE_TYPES
from fedkit.flower.wire import packet_bytes
from fedkit.methods.fedtiny.progressive import swap
from fedkit.methods.schedule import adjusting_block, block_quotas, pool_for
from fedkit.nn.zoo import build_model, seeded
from fedkit.sparse.candidates import CandidatePool
from fedkit.sparse.layout import Layout
from fedkit.sparse.state import Masks, ModelState
from fedkit.sparse.topk import Entries, largest
from fedkit.tasks.task import cross_entropy
from fedkit.wire import messages
from fedkit.wire.messages import Packet, Update, Wire

_PERIOD = 10
_ROUNDS = 100
_DENSITIES = (0.01, 0.05, 0.1)
_EXAMPLES = 5000
_SEED = 0
_UPLINK_BITS = 4
_WIDTHS: dict[Wire, int] = {"fp32": 4, "fp16": 2}

Sizes = NDArray[np.int64]
"""Bytes of the same messages in each width of `_WIDTHS`, [widths]."""


def bench_wire(quick: bool) -> dict[str, Any]:
    """Count bytes per device and round for ResNet-18 at each density and width of the values.

    Args:
        quick: Makes no difference: the whole schedule takes well under 45 s.
    """
    del quick
    model = seeded(lambda: build_model("resnet18", (3, 32, 32), 10), _SEED)
    engine = TorchEngine(model, cross_entropy)
    dense = engine.initial_state()
    return {
        "benchmark": "wire",
        "model": "resnet18",
        "seed": _SEED,
        "parameters": sum(map(math.prod, engine.layout.weights.values())),
        "rounds": _ROUNDS,
        "mask_change_every_rounds": _PERIOD,
        "rows": [row for density in _DENSITIES for row in _rows(engine.layout, dense, density)],
    }


def _rows(layout: Layout, dense: ModelState, density: float) -> Iterator[dict[str, Any]]:
    """Yield a row per width."""
    config = make_config({"density": density, "rounds": 3 * _ROUNDS, "adjust_every": _PERIOD})
    pool = pool_for(config, dense)
    selection = _selection(pool)
    rounds = _rounds(config, layout, pool.candidate(0))
    downs, ups = ((np.add(*way) / _ROUNDS).tolist() for way in zip(selection, rounds, strict=True))
    dense_bytes = 2 * packet_bytes(messages.pack_state(dense, dense.masks), MESSAGE_TYPES["train"])
    whole, few = _update_sizes(layout, pool.candidate(0))
    for (wire, width), down, up in zip(_WIDTHS.items(), downs, ups, strict=True):
        bound = _entropy_bound(layout, dense, density, width)
        yield {
            "density": density,
            "wire": wire,
            "bytes_up": round(up),
            "bytes_down": round(down),
            "bytes_dense_fp32": dense_bytes,
            "bytes_entropy_bound": round(bound),
            "ratio_dense": round(dense_bytes / (up + down), 2),
            "ratio_bound": round((up + down) / bound, 4),
            "bytes_update_fp32": whole,
            "bytes_update_4bit": few,
            "ratio_update_4bit": round(whole / few, 2),
        }


def _update_sizes(layout: Layout, state: ModelState) -> tuple[int, int]:
    """Return bytes of a usual reply with whole values, and with differences of a few bits."""
    update = Update(state, _EXAMPLES, 1.0, {})
    nothing = {name: np.zeros(shape, np.float32) for name, shape in layout.weights.items()}
    whole = messages.pack_update(update, layout, state.masks)
    few, _ = messages.pack_differences(update, layout, state, _UPLINK_BITS, nothing)
    return packet_bytes(whole, MESSAGE_TYPES["train"]), packet_bytes(few, MESSAGE_TYPES["train"])


def _selection(pool: CandidatePool) -> tuple[Sizes, Sizes]:
    """Return bytes (down, up) of adaptive BN selection with one device."""
    stats = [pool.union.stats] * len(pool)
    down = _sizes(messages.pack_pool(pool)) + _sizes(messages.pack_stats(stats))
    losses = messages.pack_losses([1.0] * len(pool), _EXAMPLES)
    return down, _sizes(messages.pack_stats(stats, _EXAMPLES)) + _sizes(losses)


def _rounds(config: RunConfig, layout: Layout, state: ModelState) -> tuple[Sizes, Sizes]:
    """Return bytes (down, up) of all rounds with one device."""
    rng = np.random.default_rng(_SEED)
    down = _sizes(Packet({}, {"candidate": 0, "round": 1}))
    up = np.zeros_like(down)
    for number in range(_PERIOD, _ROUNDS + 1, _PERIOD):
        request = messages.pack_state(state, state.masks)
        reply = messages.pack_update(Update(state, _EXAMPLES, 1.0, {}), layout, state.masks)
        down += (_PERIOD - 1) * _sizes(_numbered(request))
        up += (_PERIOD - 1) * _sizes(reply)
        block = adjusting_block(config, layout.prunable, number)
        amounts = block_quotas(config, state.masks, block, number)
        gradients = _random_gradients(state.masks, amounts, rng)
        reply = messages.pack_update(Update(state, _EXAMPLES, 1.0, gradients), layout, state.masks)
        known, state = state.masks, swap(state, gradients, amounts)
        up += _sizes(reply)
        if number < _ROUNDS:
            down += _sizes(_numbered(messages.pack_state(state, known)))
    return down, up


def _numbered(request: Packet) -> Packet:
    return Packet(request.arrays, {**request.numbers, "round": _ROUNDS})


def _sizes(packet: Packet) -> Sizes:
    narrowed = [messages.narrow(packet, wire) for wire in _WIDTHS]
    return np.array([packet_bytes(each, MESSAGE_TYPES["train"]) for each in narrowed])


def _random_gradients(
    masks: Masks, amounts: dict[str, int], rng: np.random.Generator
) -> dict[str, Entries]:
    gradients = {}
    for name, amount in amounts.items():
        pruned = np.flatnonzero(~masks[name].reshape(-1))
        values = rng.standard_normal(len(pruned)).astype(np.float32)
        chosen = largest(values, amount)
        gradients[name] = Entries(pruned[chosen], values[chosen])
    return gradients


def _entropy_bound(layout: Layout, dense: ModelState, density: float, width: int) -> float:
    """Return bytes per round, both ways, of values and of whole masks at their entropy.

    Twice (up and down) the kept values, norm parameters, biases and statistics of `width` bytes
    each; once per period the entropy of a mask. Real messages can fall below it, because a
    change of a mask carries less than the whole mask.
    """
    prunable = sum(mask.size for mask in dense.masks.values())
    rest = sum(map(math.prod, layout.weights.values())) - prunable
    stats = sum(map(math.prod, layout.stats.values()))
    values = width * (int(density * prunable) + rest + stats)
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    return 2 * values + prunable * entropy / 8 / _PERIOD


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = (
        "| density | values | bytes up | bytes down | dense float32, both ways | ratio "
        "| of the bound | a usual reply, fp32 | in 4 bits | ratio |"
    )
    rows = (
        f"| {row['density']:.0%} | {row['wire']} | {row['bytes_up']:,} | {row['bytes_down']:,} "
        f"| {row['bytes_dense_fp32']:,} | {row['ratio_dense']:.1f}x | {row['ratio_bound']:.3f} "
        f"| {row['bytes_update_fp32']:,} | {row['bytes_update_4bit']:,} "
        f"| {row['ratio_update_4bit']:.2f}x |"
        for row in result["rows"]
    )
    return markdown.table(head, rows)
