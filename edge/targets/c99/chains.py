"""Chains of ops that make each value of one other value: one table does what all of them do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge.define.interpret_int8 import compute
from edge.define.rounding import POLICIES
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from fedkit.graph.ops.registry import spec_of

_FAST = frozenset({"relu", "relu6", "add"})
"""What has fast kernels: a chain of these alone is left as it is."""


@dataclass(frozen=True)
class ValueChain:
    """Ops of which nothing but the last one's result is read by others.

    Attributes:
        source: The activation that they read.
        ops: In order.
        table: int64 [256] within int8: what the last one gives for each integer of the source.
    """

    source: str
    ops: tuple[ir.Op, ...]
    table: Int64s


def chains(graph: ir.Graph) -> Mapping[str, ValueChain]:
    """Return output -> the longest chain that makes it; none overlap.

    The table is what the interpreter gives for every integer, so it is exact.
    """
    found: dict[str, ValueChain] = {}
    taken: set[str] = set()
    for end in reversed(graph.ops):
        if end.output in taken:
            continue
        source, ops = _longest(graph, end)
        if any(op.kind not in _FAST for op in ops):
            found[end.output] = ValueChain(source, ops, _table(graph, source, ops))
            taken.update(op.output for op in ops)
    return found


def _longest(graph: ir.Graph, end: ir.Op) -> tuple[str, tuple[ir.Op, ...]]:
    """Return the farthest activation that alone leads to an op, and the ops between."""
    best: tuple[str, tuple[ir.Op, ...]] = ("", ())
    inside: list[ir.Op] = []
    leaves = {end.output}
    for op in reversed(graph.ops):
        if op.output not in leaves:
            continue
        if not _is_of_one(graph, op) or not (op is end or _is_read_within(graph, op, inside)):
            break
        inside.insert(0, op)
        leaves = (leaves - {op.output}) | set(_activations(graph, op))
        if len(leaves) == 1:
            best = next(iter(leaves)), tuple(inside)
    return best


def _activations(graph: ir.Graph, op: ir.Op) -> list[str]:
    return [name for name in op.inputs if graph.tensors[name].data is None]


def _is_of_one(graph: ir.Graph, op: ir.Op) -> bool:
    """Whether a value of the result depends on one place alone, and not on which."""
    shapes = {graph.tensors[name].shape for name in (*_activations(graph, op), op.output)}
    constants = [graph.tensors[name].data for name in op.inputs]
    is_even = all(each is None or (each == each.flat[0]).all() for each in constants)
    return spec_of(op).of_one_place and len(shapes) == 1 and is_even


def _is_read_within(graph: ir.Graph, op: ir.Op, inside: list[ir.Op]) -> bool:
    readers = [each for each in graph.ops if op.output in each.inputs]
    is_output = op.output in graph.outputs
    return not is_output and all(any(each is one for one in inside) for each in readers)


def _table(graph: ir.Graph, source: str, ops: tuple[ir.Op, ...]) -> Int64s:
    values = {source: np.arange(-128, 128)}
    for op in ops:
        operands = tuple(
            values[name]
            if name in values
            else graph.constant(name).reshape(-1)[:1].astype(np.int64)
            for name in op.inputs
        )
        values[op.output] = compute(POLICIES["half_up"], graph, op, operands)
    return values[ops[-1].output]
