"""When masks change, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from fedkit.sparse.counts import exact, half_cosine

Order = Literal["backward", "forward"]
"""Which block takes the first turn: the one at the output, or the one at the input."""


def quota(kept: int, pruned: int, step: int, last_step: int, alpha: float = 0.3) -> int:
    """Return how many weights of one layer an adjustment swaps.

    a = alpha / 2 * (1 + cos(pi * step / last_step)) * kept, rounded down: a share alpha of the
    kept weights at the start, none at the end. It never exceeds the pruned weights there are.

    Args:
        kept: Unpruned weights of the layer before the adjustment.
        pruned: Pruned weights of the layer.
        step: Local epochs done so far (round * epochs); >= 0.
        last_step: Local epochs after which adjustments stop (R_stop * epochs); > 0.
        alpha: Largest swapped share; FedTiny uses 0.3.

    Source: FedTiny (arXiv 2212.01977), "progressive pruning", as recalled; see
    docs/decisions/methods.
    """
    return min(math.floor(swapped_share(step, last_step, alpha) * kept), pruned)


def swapped_share(step: int, last_step: int, alpha: float) -> Fraction:
    """Return which share of the kept weights an adjustment may swap; see `quota`."""
    return exact(alpha) * half_cosine(step, last_step)


def blocks(layers: Sequence[str], count: int) -> list[list[str]]:
    """Divide layers (forward order) into at most `count` contiguous blocks of even length."""
    count = min(count, len(layers))
    edges = [round(i * len(layers) / count) for i in range(count + 1)]
    return [list(layers[a:b]) for a, b in pairwise(edges)]


def block_at(layers: Sequence[str], count: int, turn: int, order: Order = "backward") -> list[str]:
    """Return the block of the `turn`-th adjustment (from 0), cycling from output to input or back.

    Args:
        layers: Prunable layers in forward order.
        count: Blocks; see `blocks`.
        turn: Adjustments before this one.
        order: `backward` begins at the output, as FedTiny does; `forward` at the input.
    """
    divided = blocks(layers, count)
    place = turn % len(divided)
    return divided[place if order == "forward" else len(divided) - 1 - place]


def adjusts(round_number: int, every: int, stop: int) -> bool:
    """Say whether the masks change at the end of a round (from 1); at `stop` no quota is left."""
    return round_number % every == 0 and 0 < round_number < stop
