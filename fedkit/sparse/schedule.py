"""When masks change, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


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

    Source: FedTiny (arXiv 2212.01977), "progressive pruning", as recalled; see NOTES.md.
    """
    share = alpha / 2 * (1 + math.cos(math.pi * min(step / last_step, 1.0)))
    return min(int(share * kept), pruned)


def blocks(layers: Sequence[str], count: int) -> list[list[str]]:
    """Divide layers (forward order) into at most `count` contiguous blocks of even length."""
    count = min(count, len(layers))
    edges = [round(i * len(layers) / count) for i in range(count + 1)]
    return [list(layers[a:b]) for a, b in pairwise(edges)]


def block_at(layers: Sequence[str], count: int, adjustment: int) -> list[str]:
    """Return the block of the `adjustment`-th adjustment (from 0): output to input, cycling."""
    divided = blocks(layers, count)
    return divided[len(divided) - 1 - adjustment % len(divided)]


def adjusts(round_number: int, every: int, stop: int) -> bool:
    """Say whether the masks change at the end of a round (from 1); at `stop` no quota is left."""
    return round_number % every == 0 and round_number < stop
