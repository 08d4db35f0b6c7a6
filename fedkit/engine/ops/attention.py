"""Attention by heads as one op, in float32: what each place gets of all places.

Its weights, of all places with all others, are never stored.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Container, Iterator, Sequence
from ctypes import byref
from typing import Any

from fedkit.engine.kernels import native
from fedkit.engine.kernels.network import Network
from fedkit.engine.ops.attention_integer import INTEGER
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.attention import AttentionOp
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.sparse.float_op import Call, FloatOp, Mode, Workspace
from fedkit.engine.sparse.tiles import gives, gradient_room, read_room
from fedkit.graph import ir
from fedkit.graph.ops.attention import Heads

_ROWS = 16
"""`ATTENTION_ROWS` of attention.h."""


class CAttention(ctypes.Structure):
    """`struct attention` of kernels.h."""

    _fields_ = (
        ("query", ctypes.POINTER(native.CTensor)),
        ("key", ctypes.POINTER(native.CTensor)),
        ("value", ctypes.POINTER(native.CTensor)),
        ("target", ctypes.POINTER(native.CTensor)),
        ("scale", ctypes.c_float),
        ("heads", ctypes.c_int32),
        ("causal", ctypes.c_int32),
        ("gives_query", ctypes.c_int32),
        ("gives_key", ctypes.c_int32),
        ("gives_value", ctypes.c_int32),
    )


class FloatAttention(FloatOp[AttentionOp]):
    """Computes the weights of a few queries at a time, and again in the backward pass."""

    def __init__(self, op: AttentionOp, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        ends = (ctypes.pointer(work.tensors[each]) for each in (*op.sources, op.target))
        self._struct = CAttention(*ends, scale=op.scale, heads=op.heads, causal=op.causal)

    @staticmethod
    def scratch_floats(network: Network, number: int, mode: Mode, stored: Container[int]) -> int:
        """See `FloatOp.scratch_floats`: weights of some queries and their gradients."""
        plan, op = network.plan, network.plan.ops[number]
        assert isinstance(op, AttentionOp)
        weights = 2 * _ROWS * math.prod(plan.tensors[op.key].shape[1:])
        values = read_room(plan, op.sources) + gradient_room(plan, op.target)
        return (weights + values) * network.kernels.lanes

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        kernel, struct = work.kernels.attention_forward, byref(self._struct)
        return work.shared(kernel, work.tiles, struct, scratch=True)

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        if given:
            struct = self._struct
            struct.gives_query, struct.gives_key, struct.gives_value = gives(self.op, given)
            kernel = work.kernels.attention_backward
            yield work.shared(kernel, work.tiles, byref(struct), scratch=True)


def _planned(maker: Any, op: ir.Op) -> int:
    assert isinstance(op.attributes, Heads)  # the verifier's rule
    query, key, value = (maker.value(op, number) for number in range(3))
    how, target = op.attributes, maker.target(op)
    maker.ops.append(AttentionOp(query, key, value, target, how.count, how.scale, how.causal))
    return int(target)


_TOKENS = (6, 1, 5)
_MANY = (2, 3, 7)

FAMILY = Family(
    AttentionOp,
    (
        Example(
            AttentionOp(1, 2, 3, 4, 2, 0.5, False), ((3, 1, 6), _TOKENS, _TOKENS, _TOKENS, _TOKENS)
        ),
        Example(AttentionOp(1, 2, 3, 4, 1, 0.7, True), ((3, 3, 7), _MANY, _MANY, _MANY, _MANY)),
        Example(
            AttentionOp(1, 2, 3, 4, 2, 1.0, False),
            ((3, 2, 6), (4, 1, 6), (4, 2, 3), (2, 2, 3), (2, 1, 6)),
        ),
        Example(
            AttentionOp(1, 2, 3, 4, 2, 1.0, True),
            ((3, 2, 9), (4, 2, 9), (4, 1, 8), (2, 1, 8), (2, 2, 9)),
        ),
    ),
    FloatAttention,
    INTEGER,
    from_graph={"attention": _planned},
)
