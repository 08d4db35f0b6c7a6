"""Attention in an int8 graph, whose parts one kernel does: products, a mask, a softmax, and moves.

What lies between tokens and the products are moves alone, of heads to rows and back. They are not
matched one by one: what they do to the number of each value says whether heads are channels that
lie one behind the other, as the kernel reads and writes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edge.targets.c99.move_chains import moved, moves_before, moves_behind
from edge.targets.c99.pack import packed_bytes, pairs_of
from fedkit.core.numerics import Int64s
from fedkit.graph import ir


@dataclass(frozen=True)
class FusedAttention:
    """Ops of which nothing but the last one's result is read by others.

    Attributes:
        query: An activation [1, 1, queries, channels].
        key: Likewise, of as many channels.
        value: Of as many places as keys.
        score: The product of queries and keys.
        mask: The sum of it and a constant, if there is one.
        softmax: Of that.
        mix: The product of that and the values.
        ops: All of them, moves too, in order; the last one's output is [1, 1, queries, channels].
    """

    query: str
    key: str
    value: str
    score: ir.Op
    mask: ir.Op | None
    softmax: ir.Op
    mix: ir.Op
    ops: tuple[ir.Op, ...]

    @property
    def sources(self) -> tuple[str, str, str]:
        """What it reads."""
        return self.query, self.key, self.value


def attention_scratch(size: int, value_size: int, keys: int) -> int:
    """Return what `ek_attend` needs, for heads of so many channels: EK_ATTENTION_SCRATCH."""
    packed = packed_bytes(keys, size) + packed_bytes(value_size, keys)
    return packed + 72 * (pairs_of(size) + pairs_of(keys)) + 80 * (keys + 3) + 64


def attentions(graph: ir.Graph) -> Mapping[str, FusedAttention]:
    """Return output -> the attention that makes it."""
    found = {}
    for softmax in graph.ops:
        if softmax.kind == "softmax" and (one := _around(graph, softmax)) is not None:
            found[one.ops[-1].output] = one
    return found


def _around(graph: ir.Graph, softmax: ir.Op) -> FusedAttention | None:
    mask = _mask_of(graph, softmax)
    score = graph.producer(mask.inputs[0] if mask else softmax.inputs[0])
    mix = graph.sole_consumer(softmax.output)
    if score is None or mix is None or mix.inputs[0] != softmax.output:
        return None
    if not _is_between(graph, score, mask or softmax, mix):
        return None
    _, heads, queries, keys = graph.tensors[score.output].shape
    size, values = (graph.tensors[op.inputs[1]].shape for op in (score, mix))
    sides = (
        (score.inputs[0], (heads, queries, size[2]), (1, 0, 2)),
        (score.inputs[1], (heads, size[2], keys), (2, 0, 1)),
        (mix.inputs[1], (heads, keys, values[3]), (1, 0, 2)),
    )
    before = [_tokens_of(graph, *side) for side in sides]
    after = _tokens_from(graph, mix.output, (heads, queries, values[3]))
    query, key, value = before
    if query is None or key is None or value is None or after is None:
        return None
    inside = {op.output for each in (query, key, value, after) for op in each.ops}
    inside |= {op.output for op in (score, mask, softmax, mix) if op is not None}
    ops = tuple(op for op in graph.ops if op.output in inside)
    return FusedAttention(query.tokens, key.tokens, value.tokens, score, mask, softmax, mix, ops)


def _mask_of(graph: ir.Graph, softmax: ir.Op) -> ir.Op | None:
    """Return the op that adds a constant to what a softmax alone reads."""
    op = graph.producer(softmax.inputs[0])
    if op is None or op.kind != "add" or graph.sole_consumer(op.output) is not softmax:
        return None
    held = [graph.tensors[name].data is not None for name in op.inputs]
    return op if held == [False, True] else None


def _is_between(graph: ir.Graph, score: ir.Op, reader: ir.Op, mix: ir.Op) -> bool:
    are_products = score.kind == mix.kind == "matmul"
    of_activations = all(
        graph.tensors[name].data is None for op in (score, mix) for name in op.inputs
    )
    return (
        are_products
        and of_activations
        and graph.sole_consumer(score.output) is reader
        and mix.inputs[0] != mix.inputs[1]
    )


class _Moved(NamedTuple):
    """Tokens, and the moves between them and a product."""

    tokens: str
    ops: tuple[ir.Op, ...]


def _tokens_of(
    graph: ir.Graph, name: str, shape: tuple[int, ...], order: tuple[int, ...]
) -> _Moved | None:
    """Return the tokens that moves make an operand of.

    Args:
        graph: All.
        name: The operand, a matrix for each head.
        shape: Its, without the first axis.
        order: Its axes as tokens have them: places, heads, channels of a head.
    """
    wanted = np.arange(math.prod(shape)).reshape([shape[axis] for axis in order])
    expected = wanted.transpose(np.argsort(order)).ravel()
    for tokens, ops in moves_before(graph, name):
        if ops and graph.sole_consumer(name) is None:
            break
        if _are_tokens(graph, tokens, wanted.shape[0]) and _same(graph, tokens, ops, expected):
            return _Moved(tokens, ops)
    return None


def _tokens_from(graph: ir.Graph, name: str, shape: tuple[int, ...]) -> _Moved | None:
    """Return the tokens that moves make of what a product gives, [heads, places, channels]."""
    expected = np.arange(math.prod(shape)).reshape(shape).transpose(1, 0, 2).ravel()
    for tokens, ops in moves_behind(graph, name):
        if _are_tokens(graph, tokens, shape[1]) and _same(graph, name, ops, expected):
            return _Moved(tokens, ops)
    return None


def _are_tokens(graph: ir.Graph, name: str, places: int) -> bool:
    shape = graph.tensors[name].shape
    return len(shape) == 4 and shape[1:3] == (1, places)


def _same(graph: ir.Graph, source: str, ops: Sequence[ir.Op], expected: Int64s) -> bool:
    """Whether the moves put number `expected[i]` of the source, in its order, in place i."""
    return bool(np.array_equal(moved(graph, source, ops).ravel(), expected))
