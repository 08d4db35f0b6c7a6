"""Attention: an export has products, a softmax and moves; a plan one op, if no mask is added."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkit.graph import ir
from fedkit.graph.attention_masks import with_far
from fedkit.graph.layouts import SERIES
from fedkit.graph.operands import ConstantOperand, activation, constant, rank_of, require
from fedkit.graph.ops.spread import spread
from fedkit.graph.spec import ModelReader, Random, Spec, graph_of
from fedkit.graph.tokens import channels_as_last, last_as_channels, multiplied, turned


@dataclass(frozen=True)
class Heads(ir.Attributes):
    """How places look at each other.

    Attributes:
        count: Heads, each of as many channels that lie one behind the other.
        scale: Of scores.
        causal: Whether a place sees none behind it.
    """

    count: int
    scale: float
    causal: bool


def heads_of(op: ir.Op) -> Heads:
    """Return what an op says of its heads."""
    assert isinstance(op.attributes, Heads)  # the verifier's rule
    return op.attributes


def _attention(
    op: ir.Op, graph: ir.Graph, query: ir.FloatArray, key: ir.FloatArray, value: ir.FloatArray
) -> ir.FloatArray:
    """Give softmax(scale * query key^T) value for each head; all are [n, 1, places, channels]."""
    how = heads_of(op)
    q, k, v = (_by_heads(each, how.count) for each in (query, key, value))
    scores = np.float32(how.scale) * (q @ k.swapaxes(-1, -2)).astype(np.float64)
    if how.causal:
        scores = np.where(_before(scores), scores, -np.inf)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (powers / powers.sum(axis=-1, keepdims=True)) @ v
    n, _, places, size = mixed.shape
    whole = mixed.swapaxes(1, 2).reshape(n, 1, places, how.count * size)
    return np.ascontiguousarray(whole, np.float32)


def _before(scores: ir.Array) -> ir.Array:
    """Tell of [.., places, places] which are not behind the one that looks."""
    rows, columns = scores.shape[-2:]
    return np.tri(rows, columns, dtype=np.bool_)


def _by_heads(x: ir.FloatArray, heads: int) -> ir.FloatArray:
    """Return [n, heads, places, channels of one]."""
    n, _, places, channels = x.shape
    return x.reshape(n, places, heads, channels // heads).swapaxes(1, 2)


def _shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    query, _, value = (graph.tensors[name].shape for name in op.inputs)
    return (*query[:3], value[3])


def _operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    query, key, value = shapes
    fits = len(key) == len(value) == len(query)
    places, channels = (key[2], value[3]) if fits else query[2:]
    return [(1, 1, places, query[3]), (1, 1, places, channels)]


def _rules(graph: ir.Graph, op: ir.Op) -> Iterator[str]:
    how = heads_of(op)
    for name in op.inputs:
        _, rows, _, channels = graph.tensors[name].shape
        if rows != 1 or how.count < 1 or channels % how.count:
            yield f"must read rows of places whose {channels} channels {how.count} heads divide"


def _example(random: Random) -> ir.Graph:
    """Let a map look at itself, or at fewer places that are pooled out of it."""
    heads = int(random.integers(1, 4))
    places, channels = int(random.integers(1, 9)), heads * int(random.integers(1, 6))
    window = ir.Window((1, int(random.integers(1, places + 1))))
    pool = ir.Op("max_pool2d", ("x",), ("p",), window)
    how = Heads(heads, float(random.uniform(0.1, 1)), bool(random.random() < 0.5))
    shape, fewer = (1, 1, places, channels), (1, 1, window.output(1, places)[1], channels)
    op = ir.Op("attention", ("x", "p", "p"), ("y",), attributes=how)
    return graph_of((shape, fewer, shape), (), pool, op)


# Readers


def read_attention(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    """Add softmax(query key^T / sqrt(size) + mask) value, for each head."""
    given = tuple(activation(a[name]) for name in ("query", "key", "value"))
    require(rank_of(reader, node) > 2, "attention between features, which mixes the examples")
    require(not a["dropout_p"], "dropout that is on in evaluation")
    scale = 1 / math.sqrt(given[0].shape[2]) if a["scale"] is None else float(a["scale"])
    if reader.trains and (causal := _is_causal(reader, a)) is not None:
        return _as_one(reader, node, given, scale, causal)
    query, key, value = (
        last_as_channels(reader, node, each, f".{name}")
        for name, each in zip(("query", "key", "value"), given, strict=True)
    )
    scores = multiplied(
        reader,
        node,
        _scaled(reader, node, query, scale),
        turned(reader, node, key, (1, 3, 2), ".key_turned"),
        ".scores",
    )
    masked = _masked(reader, node, scores, a)
    weights = reader.op("softmax", node, [masked], scores.shape, suffix=".softmax")
    return channels_as_last(reader, node, multiplied(reader, node, weights, value))


def _is_causal(reader: ModelReader, a: Mapping[str, Any]) -> bool | None:
    """Whether places see none behind them, or all; None where a mask says something else."""
    if (mask := a["attn_mask"]) is None:
        return bool(a["is_causal"])
    values = constant(mask, "masks")
    if reader.learns(mask) or not np.isin(values, (0, 1, -np.inf)).all():
        return None
    sees = values if values.dtype == np.bool_ else values == 0
    if sees.all():
        return False
    return True if (sees == _before(sees)).all() else None


def _as_one(
    reader: ModelReader, node: Any, given: Sequence[ir.Tensor], scale: float, causal: bool
) -> ir.Tensor:
    """Add one op over tokens: of each all heads, one behind the other."""
    heads = 1 if rank_of(reader, node) == SERIES else given[0].shape[3]
    tokens = [_as_tokens(reader, node, each, f".of{n}") for n, each in enumerate(given)]
    shape = (*tokens[0].shape[:3], tokens[2].shape[3])
    how = Heads(heads, scale, causal)
    mixed = reader.op("attention", node, tokens, shape, suffix=".tokens", attributes=how)
    if heads == 1 and rank_of(reader, node) == SERIES:
        return channels_as_last(reader, node, mixed)
    apart = (1, shape[2], heads, shape[3] // heads)
    return turned(
        reader, node, reader.op("reshape", node, [mixed], apart, suffix=".heads"), (1, 3, 2), ""
    )


def _as_tokens(reader: ModelReader, node: Any, x: ir.Tensor, suffix: str) -> ir.Tensor:
    """Add what turns [n, heads, places, size] of the model, or one head, into tokens."""
    if rank_of(reader, node) == SERIES:
        return last_as_channels(reader, node, x, suffix)
    by_place = turned(reader, node, x, (1, 3, 2), f"{suffix}.turned")
    _, places, heads, size = by_place.shape
    return reader.op("reshape", node, [by_place], (1, 1, places, heads * size), suffix=suffix)


def _scaled(reader: ModelReader, node: Any, x: ir.Tensor, scale: float) -> ir.Tensor:
    channels = x.shape[3]
    operands = [
        x,
        reader.constant(node, "scale", np.full(channels, scale)),
        reader.constant(node, "shift", np.zeros(channels)),
    ]
    return reader.op("affine", node, operands, x.shape, suffix=".scaled")


def _masked(reader: ModelReader, node: Any, scores: ir.Tensor, a: Mapping[str, Any]) -> ir.Tensor:
    """Add what is added to scores: a mask that is given, or one that hides what comes later."""
    mask = _mask(scores, a)
    if not mask.any():
        return scores
    rank = rank_of(reader, node)
    laid = mask.reshape((1,) * (4 - mask.ndim) + mask.shape) if mask.ndim < rank else mask
    laid = laid if laid.ndim == 4 else laid[:, None]
    wide = np.broadcast_shapes(laid.shape, scores.shape)
    require(wide == scores.shape, f"a mask of shape {mask.shape} for scores {scores.shape[1:]}")
    if reader.trains:
        operand = _spread_mask(reader, node, np.broadcast_to(laid, wide), a["attn_mask"])
    else:
        operand = reader.constant(node, "mask", laid)
    return reader.op("add", node, [scores, operand], scores.shape, suffix=".masked")


def _mask(scores: ir.Tensor, a: Mapping[str, Any]) -> ir.Array:
    """Return what is added to scores; nothing where all places see all."""
    given = np.zeros(1) if a["attn_mask"] is None else constant(a["attn_mask"], "masks")
    if not a["is_causal"]:
        return with_far(given)
    require(a["attn_mask"] is None, "attention that is causal and has a mask, too")
    return with_far(_before(np.empty(scores.shape)))


def _spread_mask(reader: ModelReader, node: Any, laid: ir.Array, mask: Any) -> ir.Tensor:
    """Add a mask, laid as scores are in the graph, as what all examples have."""
    if reader.learns(mask):
        raise ConstantOperand("a mask is learned or computed from parameters")
    return spread(reader, node, ir.from_graph_layout(laid), 4, ".mask")


SPECS = (
    Spec(
        "attention",
        "attention",
        _attention,
        _example,
        activations=3,
        shape=_shape,
        operands=_operands,
        rules=_rules,
        reads_map=True,
        attributes=Heads,
        aten={"aten.scaled_dot_product_attention.default": read_attention},
        only_trains=True,
    ),
)
