"""Whether inputs are of the kind that norms with frozen deviation were made for.

A norm that divides by its own deviation gives numbers of one size, whatever comes. One that divides
by a constant gives what comes: a rare input of another size goes through a network that never saw
the like, and its result may be anything. So the range of each such deviation is kept from the
calibration set, and others are compared with it, on the float model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edge.passes.affines import Floats
from edge.passes.ln_freeze import deviations_of
from fedkit.graph import ir

MARGIN = 2.0
"""How many times the largest deviation of the calibration set is out of range."""

_AT_ONCE = 64
_TINY = 1e-300  # to divide by in place of 0


@dataclass(frozen=True)
class Tripped:
    """What a guard saw.

    Attributes:
        tensor: The value that a frozen norm reads.
        source: Module that writes it.
        low: The least deviation on the calibration set.
        high: The largest.
        places: How many were looked at: tokens or pixels of all examples.
        outside: How many of them are out of range.
        examples: Numbers of the examples that have some, the first ten.
        worst: The deviation that is farthest out, or else nearest to that.
    """

    tensor: str
    source: str
    low: float
    high: float
    places: int
    outside: int
    examples: tuple[int, ...]
    worst: float


def measured(floats: ir.Graph, examples: ir.Inputs) -> ir.Graph:
    """Return a float graph whose guards know the ranges on a calibration set.

    Args:
        floats: With guards or without.
        examples: float32 [n, ...], or tokens, in the graph's layout.
    """
    seen = _seen(floats, examples)
    guards = {
        name: replace(guard, low=float(seen[name].min()), high=float(seen[name].max()))
        for name, guard in floats.guards.items()
    }
    return replace(floats, guards=guards)


def look(floats: ir.Graph, inputs: ir.Inputs) -> tuple[Tripped, ...]:
    """Compare inputs with the ranges of a graph's guards.

    Args:
        floats: As `measured` made it.
        inputs: float32 [n, ...], or tokens, in the graph's layout.

    Returns:
        What each guard saw, of which `outside` is 0 where all is in range.
    """
    seen = _seen(floats, inputs)
    return tuple(_of(floats, name, guard, seen[name]) for name, guard in floats.guards.items())


def told(found: tuple[Tripped, ...]) -> str:
    """Return in a sentence what is out of range; nothing if all is within."""
    out = [each for each in found if each.outside]
    if not out:
        return ""
    worst = max(out, key=lambda each: each.outside / each.places)
    return (
        f"{len(out)} of {len(found)} norms without a deviation of their own saw others than the "
        f"calibration set has: most behind module {worst.source!r}, where {worst.outside:,} of "
        f"{worst.places:,} places are out of range, up to {worst.worst:.3g} (seen: "
        f"{worst.low:.3g} to {worst.high:.3g}), first in example {worst.examples[0]}; outputs of "
        "such inputs mean nothing. Calibrate with examples of these, or keep the norms"
    )


def _of(floats: ir.Graph, name: str, guard: ir.Guard, seen: Floats) -> Tripped:
    is_out = ~((guard.low / MARGIN <= seen) & (seen <= guard.high * MARGIN))
    examples = np.flatnonzero(is_out.reshape(len(seen), -1).any(1))[:10]
    op = floats.producer(name)
    largest, least = float(seen.max()), float(seen.min())
    above, below = (a / max(b, _TINY) for a, b in ((largest, guard.high), (guard.low, least)))
    return Tripped(
        name,
        op.source if op else "input",
        guard.low,
        guard.high,
        seen.size,
        int(is_out.sum()),
        tuple(map(int, examples)),
        largest if above >= below else least,
    )


def _seen(floats: ir.Graph, inputs: ir.Inputs) -> Mapping[str, Floats]:
    names = {name: guard.centred for name, guard in floats.guards.items()}
    if not names:
        return {}
    parts = [
        deviations_of(floats, np.asarray(inputs[start : start + _AT_ONCE], np.float32), names)
        for start in range(0, len(inputs), _AT_ONCE)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
