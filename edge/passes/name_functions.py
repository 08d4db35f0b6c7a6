"""Find functions of one value that a file spells out, as GELU by erf, and name them.

What a chain of ops on one value computes is told by its values: it is evaluated on a grid, as is
each function that has a name. A named one takes fewer ops and is rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedkit.graph import ir
from fedkit.graph.ops.functions import FUNCTIONS, values_of
from fedkit.graph.ops.registry import spec_of

_GRID = np.concatenate([np.linspace(-12, 12, 961), np.linspace(-60, 60, 97)])
_TOLERANCE = 2e-5
_LONGEST = 12  # ops; GELU by tanh has 9
_OF_ONE = frozenset(function.kind for function in FUNCTIONS)
_JOINING = frozenset({"add", "sub", "mul"})
_TOLD_BY = _OF_ONE | {"mul"}
"""A chain of other ops is none of these functions, or as good as it is."""
_NAMES = ("silu", "hard_swish", "gelu", "gelu_tanh", "mish")


@dataclass(frozen=True)
class Match:
    """Ops that compute a function of one activation, and an op that does so alone."""

    chain: tuple[ir.Op, ...]
    named: ir.Op


def match(graph: ir.Graph) -> Match | None:
    """Find the longest chain that ends in an op and has a name."""
    makers = {op.output: op for op in graph.ops}
    for end in reversed(graph.ops):
        if end.kind not in _JOINING and end.kind != "affine":
            continue
        for source, chain in _chains(graph, makers, end):
            if named := _named(graph, source, chain):
                return Match(chain, named)
    return None


def transform(graph: ir.Graph, found: Match) -> ir.Graph:
    """Put the named op in place of the chain; what others read of it stays."""
    gone = [found.chain[-1]]
    for op in reversed(found.chain[:-1]):
        readers = [each for each in graph.ops if op.output in each.inputs]
        if op.output not in graph.outputs and all(_is_in(each, gone) for each in readers):
            gone.insert(0, op)
    return graph.rewrite(gone, (found.named,), ())


def _is_in(op: ir.Op, ops: Sequence[ir.Op]) -> bool:
    return any(op is each for each in ops)


def _chains(
    graph: ir.Graph, makers: dict[str, ir.Op], end: ir.Op
) -> Iterator[tuple[str, tuple[ir.Op, ...]]]:
    """Yield each activation of which alone an op depends, farthest first, and the ops between."""
    found: list[tuple[str, tuple[ir.Op, ...]]] = []
    chain, leaves = {end.output}, _activations(graph, end)
    while len(chain) <= _LONGEST:
        if len(leaves) == 1:
            found.append((next(iter(leaves)), tuple(op for op in graph.ops if op.output in chain)))
        # The latest is taken in first, so that what two branches read is met once.
        last = next((op for op in reversed(graph.ops) if op.output in leaves), None)
        if last is None or not _is_of_one(graph, last):
            break
        chain.add(last.output)
        leaves = (leaves - {last.output}) | _activations(graph, last)
    yield from reversed(found)


def _activations(graph: ir.Graph, op: ir.Op) -> set[str]:
    return {name for name in op.inputs if graph.tensors[name].data is None}


def _is_of_one(graph: ir.Graph, op: ir.Op) -> bool:
    """Whether each value of an op's result comes from one place, in a way that is the same in all.

    Those of two operands of one shape do if both come from the same activation.
    """
    if op.kind in _OF_ONE or spec_of(op).activation != "none":
        return True
    constants = [graph.constant(name) for name in op.inputs if name not in _activations(graph, op)]
    is_even = all((each == each.flat[0]).all() for each in constants)
    shapes = {graph.tensors[name].shape for name in (*_activations(graph, op), op.output)}
    return op.kind in (*_JOINING, "affine") and is_even and len(shapes) == 1


def _named(graph: ir.Graph, source: str, chain: tuple[ir.Op, ...]) -> ir.Op | None:
    is_told = any(op.kind in _TOLD_BY for op in chain)
    if len(chain) < 2 or not is_told or not all(_is_of_one(graph, op) for op in chain):
        return None
    with np.errstate(all="ignore"):
        values = _evaluated(graph, source, chain)
    for kind in _NAMES:
        named = ir.Op(kind, (source,), chain[-1].outputs, source=chain[-1].source)
        wanted = values_of(named, _GRID)
        if (np.abs(values - wanted) <= _TOLERANCE * (1 + np.abs(wanted))).all():
            return named
    return None


def _evaluated(graph: ir.Graph, source: str, chain: tuple[ir.Op, ...]) -> ir.FloatArray:
    values: dict[str, ir.FloatArray] = {source: _GRID.astype(np.float32)[:, None]}
    for op in chain:
        operands = [
            values[name] if name in values else graph.constant(name).reshape(-1)[:1]
            for name in op.inputs
        ]
        done = replace(op, activation="none")
        values[op.output] = spec_of(op).real(done, graph, *operands)
        if op.activation != "none":
            limit = np.inf if op.activation == "relu" else 6
            values[op.output] = np.clip(values[op.output], 0, limit).astype(np.float32)
    return values[chain[-1].output][:, 0]
