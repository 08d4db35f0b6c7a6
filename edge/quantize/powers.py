"""Scales of what a softmax reads, whose powers all libraries round alike.

TFLite's softmax is a table of e^(-k s), made where it runs by the C library's `expf`, which rounds
some of them to the other neighbour: of glibc's, one in 1,600. A table of 256 holds such a power in
one case of seven, and once in some million results it decides an integer. A scale that is larger by
some parts in a million has a table in which no power lies near the middle of two neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np

from fedkit.graph import ir
from fedkit.graph.ops.registry import spec_of

_MARGIN = 0.01
"""How far from the middle of two neighbours powers are, in steps between these: libraries err by
0.503 steps at most, half of which is rounding."""

_LEAST_POWER = 1e-30
"""Smaller ones change no sum."""

_MOST_STEPS = 4096
"""Of float32, that a scale may grow by; one in 170 will do."""


def read_by_softmax(graph: ir.Graph, joined: Mapping[str, Set[str]]) -> frozenset[str]:
    """Return the activations of which a softmax reads a scale, through what keeps scales too.

    Args:
        graph: The graph.
        joined: Activation -> those that have its scale.
    """
    found: set[str] = set()
    for op in reversed(graph.ops):
        if op.kind in ("softmax", "log_softmax"):
            found.add(op.inputs[0])
        elif op.output in found and spec_of(op).scale == "kept":
            found.update(op.inputs)
        found.update(*(joined.get(name, frozenset()) for name in tuple(found)))
    return frozenset(found)


def surely_rounded(scale: float) -> float:
    """Return the least scale from `scale` on, in float32, whose powers are surely rounded.

    Where the next few thousand have none, it stays.
    """
    tried = np.float32(scale)
    for _ in range(_MOST_STEPS):
        if _is_sure(tried):
            return float(tried)
        tried = np.nextafter(tried, np.float32(np.inf))
    return scale


def _is_sure(scale: np.float32) -> bool:
    exponents = scale * np.arange(256, dtype=np.float32)
    powers = np.exp(-exponents.astype(np.float64))
    powers = powers[powers > _LEAST_POWER]
    nearest = powers.astype(np.float32)
    off = np.abs(powers - nearest) / np.spacing(nearest).astype(np.float64)
    # Below a power of two the neighbours are nearer; a power that is one is e^0 alone.
    return bool((np.abs(off - 0.5) > _MARGIN).all())
