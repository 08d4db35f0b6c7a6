"""What LiteRT computes without XNNPACK, integer by integer.

It is `gemmlowp`, but where kernels take channels in blocks, by instructions that round halves up
both times. Channels behind the last whole block are rounded as elsewhere, so that a value depends
on the place of its channel. No policy of `edge.define.rounding` can be so, as slimming moves
channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edge.define.interpret_int8 import Int8Array, compute
from edge.define.rounding import Policy, Scales, Summed, policy
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from fedkit.graph.interpret import run

_ELSEWHERE = policy("gemmlowp")


def evaluate_alone(graph: ir.Graph, codes: Int8Array) -> Int8Array:
    """Return the first output of an int8 graph, int8 [n, ...], as LiteRT without XNNPACK does."""

    def compute_int8(op: ir.Op, operands: list[Int8Array]) -> Int8Array:
        wide = tuple(operand.astype(np.int64) for operand in operands)
        return compute(_OTHERS.get(op.kind, _ELSEWHERE), graph, op, wide).astype(np.int8)

    return run(graph, codes, compute_int8, None)[0]


def _rescale(sums: Int64s, scale: Scales, out: float, of: Summed) -> Int64s:
    rounded = _halves_up(sums, scale / out)
    return _in_blocks_of(8, rounded, _ELSEWHERE.rescale(sums, scale, out, of))


def _mean(sums: Int64s, count: int, x: ir.Tensor, out: ir.Tensor) -> Int64s:
    ratio = np.float32(x.scale) / (np.float32(count) * np.float32(out.scale))
    share = np.float32(x.zero_point) * np.float32(x.scale) / np.float32(out.scale)
    offset = int(share + np.copysign(np.float32(0.5), share))
    rounded = _halves_up(sums, np.asarray(ratio, np.float64)) - offset
    return _in_blocks_of(16, rounded, _ELSEWHERE.mean(sums, count, x, out))


def _in_blocks_of(size: int, within: Int64s, behind: Int64s) -> Int64s:
    channels = within.shape[-1]
    return np.where(np.arange(channels) < channels // size * size, within, behind)


def _halves_up(x: Int64s, real: Scales) -> Int64s:
    """Return x * real: the upper half of the doubled product, then a shift, each rounded."""
    fraction, exponent = np.frexp(real)
    multiplier = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    carried = multiplier == 2**31
    multiplier, exponent = multiplier >> carried, exponent + carried
    left, right = np.maximum(exponent, 0), np.maximum(-exponent, 0).astype(np.int64)
    high = ((x << left) * multiplier + 2**30) >> 31
    return np.where(right > 0, (high + (1 << np.maximum(right - 1, 0))) >> right, high)


_OTHERS: Mapping[str, Policy] = {
    "depthwise_conv2d": replace(_ELSEWHERE, name="in blocks", rescale=_rescale),
    "mean": replace(_ELSEWHERE, name="in blocks", mean=_mean),
    "group_norm": policy("half_even"),  # in floats, which it quantises by a vector instruction
}
