"""Rewrites that are asked for by name: what each is, applied, refused with reasons and probed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedkit.graph import ir
from fedkit.graph.interpret import FloatArray, evaluate_all
from fedkit.graph.ops.registry import tokens_of
from fedkit.graph.verify import verify

TOLERANCE = 1e-4
"""By how much of its largest value an output may differ after an exact rewrite, in float32."""

_PROBED = 2  # examples


@dataclass(frozen=True)
class Place:
    """Where a rewrite may apply.

    Attributes:
        name: A value that tells it from other places.
        where: The module that people know it by.
        why_not: Why it does not apply; empty if it does.
        found: What `Rewrite.transform` is given.
    """

    name: str
    where: str
    why_not: str = ""
    found: Any = None


@dataclass(frozen=True)
class Hints:
    """What rewrites know beside the graph.

    Attributes:
        examples: float32 [n, ...] in the graph's layout, tokens among them, like those that the
            model will see; None without.
    """

    examples: FloatArray | None = None


@dataclass(frozen=True)
class Rewrite:
    """A rewrite of float graphs.

    Attributes:
        kind: Its name.
        about: What it does, in a few words.
        needs: What must hold where it applies.
        exact: Whether outputs stay the same numbers, up to the rounding of float32.
        places: Gives each place where it applies or is refused.
        transform: Rewrites one where it applies.
        always: Whether every export applies it, without being asked.
        opt_in: Whether it is applied only if it is named.
        caution: What to weigh before it is asked for.
    """

    kind: str
    about: str
    needs: str
    exact: bool
    places: Callable[[ir.Graph, Hints], Iterator[Place]]
    transform: Callable[[ir.Graph, Any], ir.Graph]
    always: bool = False
    opt_in: bool = False
    caution: str = ""


@dataclass(frozen=True)
class Done:
    """What became of a rewrite.

    Attributes:
        kind: The rewrite.
        exact: Whether it is one that changes no number.
        applied: Where it was applied, in order.
        refused: (where, why it was not), of other places.
        gap: By how much of its largest value an output of the probe differs then.
    """

    kind: str
    exact: bool
    applied: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    gap: float = 0.0


@dataclass
class _Log:
    """What became of places so far.

    Attributes:
        applied: Value -> where.
        failed: Those whose probe differed: value -> (where, why).
    """

    applied: dict[str, str] = field(default_factory=dict)
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)
    gap: float = 0.0


def apply(graph: ir.Graph, rewrite: Rewrite, given: Hints) -> tuple[ir.Graph, Done]:
    """Apply a rewrite wherever it can be, and verify and probe the graph after each place.

    What every export does without a probe is probed once, behind the last place.

    Args:
        graph: Float.
        rewrite: The rewrite.
        given: What it may know.

    Returns:
        The graph, and what was done. A place at which an exact rewrite changes an output of the
        probe by more than `TOLERANCE` is refused, as is one that is refused by itself.

    Raises:
        ExportError: The rewrite broke a rule of graphs.
    """
    inputs, log, before = _probe(graph, given), _Log(), None
    start = graph
    while (place := _next(graph, rewrite, given, log)) is not None:
        made = rewrite.transform(graph, place.found)
        verify(made)
        if not rewrite.always:
            before = before or evaluate_all(start, inputs)
            gap = _largest_gap(before, evaluate_all(made, inputs))
            if rewrite.exact and not gap <= TOLERANCE:
                why = f"the probe differs by {gap:.1e} of its largest output, not {TOLERANCE}"
                log.failed[place.name] = place.where, why
                continue
            log.gap = max(log.gap, gap)
        log.applied[place.name] = place.where
        graph = made
    if rewrite.always and log.applied:
        log.gap = _largest_gap(evaluate_all(start, inputs), evaluate_all(graph, inputs))
    refused = [
        (place.where, place.why_not)
        for place in rewrite.places(graph, given)
        if place.why_not and place.name not in log.applied
    ]
    told = tuple(dict.fromkeys((*refused, *log.failed.values())))
    return graph, Done(rewrite.kind, rewrite.exact, tuple(log.applied.values()), told, log.gap)


def _next(graph: ir.Graph, rewrite: Rewrite, given: Hints, log: _Log) -> Place | None:
    """Return a place where a rewrite applies."""
    places = rewrite.places(graph, given)
    return next((p for p in places if not p.why_not and p.name not in log.failed), None)


def _probe(graph: ir.Graph, given: Hints) -> Mapping[str, FloatArray]:
    """Return inputs: the first examples, or random ones that are always the same."""
    if given.examples is not None and len(given.examples):
        return {graph.inputs[0]: given.examples[:_PROBED]}
    rng, tokens = np.random.default_rng(0), tokens_of(graph)
    shapes = {name: (_PROBED, *graph.tensors[name].shape[1:]) for name in graph.inputs}
    return {
        name: rng.integers(tokens, size=shape).astype(np.float32)
        if tokens
        else rng.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }


def _largest_gap(before: Sequence[FloatArray], after: Sequence[FloatArray]) -> float:
    return max(map(_gap, before, after))


def _gap(before: FloatArray, after: FloatArray) -> float:
    """Return by how much of the largest value before another differs; NaN where it is NaN."""
    size, gap = (float(np.abs(each).max(initial=0)) for each in (before, after - before))
    return gap / size if size else (gap and math.inf)
