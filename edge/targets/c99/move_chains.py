"""Chains of ops that only put values elsewhere: one call does what all of them do.

What a chain does to the number of each value is known, and so is where the value lies before and
after. Reshapes and other orders of axes come to a few nested loops, each with a distance in what is
read and one in what is written.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge.define.rounding import POLICIES
from edge.ops.registry import SPECS
from edge.targets.c99.pack import Planes
from fedkit.core.numerics import Int64s
from fedkit.graph import ir

_MOVES = frozenset({"reshape", "transpose"})

MOST_LOOPS = 8
"""EK_LOOPS of the kernel."""


@dataclass(frozen=True)
class MoveChain:
    """Ops of which nothing but the last one's result is read by others, and what they do.

    Attributes:
        source: The activation that they read.
        ops: In order.
        loops: [loops][3]: how often, and the distances in bytes of what is read and written.
    """

    source: str
    ops: tuple[ir.Op, ...]
    loops: Int64s


def move_chains(
    graph: ir.Graph, planes: Mapping[str, Planes], taken: Container[str]
) -> Mapping[str, MoveChain]:
    """Return output -> the longest chain of moves that makes it; none overlap.

    Args:
        graph: All.
        planes: How each activation lies.
        taken: Outputs of ops that belong to something else.
    """
    found: dict[str, MoveChain] = {}
    within: set[str] = set()
    for end in reversed(graph.ops):
        if end.output not in within and end.output not in taken and end.kind in _MOVES:
            chain = _longest(graph, planes, end)
            if chain is not None:
                found[end.output] = chain
                within |= {op.output for op in chain.ops}
    return found


def _longest(graph: ir.Graph, planes: Mapping[str, Planes], end: ir.Op) -> MoveChain | None:
    best = None
    for source, ops in moves_before(graph, end.output):
        if ops and all(len(graph.tensors[name].shape) == 4 for name in (source, end.output)):
            loops = _loops(graph, planes, source, ops)
            if loops is not None:
                best = MoveChain(source, ops, loops)
    return best


def moves_before(graph: ir.Graph, name: str) -> Iterator[tuple[str, tuple[ir.Op, ...]]]:
    """Yield an activation, then what leads to it by moves, with these.

    Of all of them but the last one nothing else reads the results.
    """
    ops: tuple[ir.Op, ...] = ()
    yield name, ops
    op = graph.producer(name)
    while op is not None and op.kind in _MOVES:
        ops = (op, *ops)
        yield op.inputs[0], ops
        if graph.sole_consumer(op.inputs[0]) is None:
            return
        op = graph.producer(op.inputs[0])


def moves_behind(graph: ir.Graph, name: str) -> Iterator[tuple[str, tuple[ir.Op, ...]]]:
    """Yield an activation, then what moves make of it, as far as nothing else reads it."""
    ops: tuple[ir.Op, ...] = ()
    yield name, ops
    op = graph.sole_consumer(name)
    while op is not None and op.kind in _MOVES:
        ops = (*ops, op)
        yield op.output, ops
        op = graph.sole_consumer(op.output)


def moved(graph: ir.Graph, source: str, ops: Sequence[ir.Op]) -> Int64s:
    """Return which value of a source, counted in its order, moves put where: as their output."""
    shape = graph.tensors[source].shape
    x = np.arange(math.prod(shape)).reshape(shape)
    for op in ops:
        x = SPECS[op.kind].exact(POLICIES["half_up"], graph, op, (x,))
    return x


def _loops(
    graph: ir.Graph, planes: Mapping[str, Planes], source: str, ops: Sequence[ir.Op]
) -> Int64s | None:
    """Return nested loops, outermost first; None: there are none, or too many."""
    places = _places(planes[source])
    read = places[moved(graph, source, ops)[0]].transpose(2, 0, 1).ravel()
    written = _places(planes[ops[-1].output]).reshape(graph.tensors[ops[-1].output].shape[1:])
    distances = np.stack([read, written.transpose(2, 0, 1).ravel()])
    loops: list[tuple[int, ...]] = []
    while (count := distances.shape[1]) > 1:
        steps = distances[:, 1] - distances[:, 0]
        size = next(
            (n for n in _divisors(count) if _is_even(distances.reshape(2, -1, n), steps)), 1
        )
        if size == 1 or len(loops) == MOST_LOOPS:
            return None
        loops.append((size, *steps.tolist()))
        distances = distances[:, ::size]
    # In any order they do the same: runs of bytes innermost, else the longest loop.
    loops.sort(key=lambda loop: (loop[1:] == (1, 1), loop[0]))
    return np.array(loops or [(1, 0, 0)])


def _places(planes: Planes) -> Int64s:
    """Return where each value lies, int64 by its number: rows, columns and then channels."""
    rows, columns, channels = (np.arange(n) for n in (planes.height, planes.width, planes.channels))
    found = rows[:, None, None] * planes.row + columns[:, None] + channels * planes.plane
    return np.asarray(found.ravel(), np.int64)


def _divisors(count: int) -> list[int]:
    """Return those greater than 1, the largest first."""
    return [n for n in range(count, 1, -1) if count % n == 0]


def _is_even(distances: Int64s, steps: Int64s) -> bool:
    """Whether places of each group are so far apart, [2, groups, places]."""
    return bool((np.diff(distances, axis=2) == steps[:, None, None]).all())
