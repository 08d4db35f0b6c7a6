"""Products of matrices that are both activations, and the attention that is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedkit.graph import ir
from fedkit.graph.operands import activation, constant, rank_of, require
from fedkit.graph.ops.transpose import Order
from fedkit.graph.ops.weighted import read_matmul_aten, read_matmul_onnx
from fedkit.graph.spec import ModelReader, Random, Spec, graph_of
from fedkit.graph.tokens import channels_as_last, last_as_channels, multiplied, turned

_MOST_TERMS = 2**16
"""Of a sum of products of int8 and a difference of two, within 32 bits."""


def _matmul(op: ir.Op, graph: ir.Graph, x: ir.FloatArray, y: ir.FloatArray) -> ir.FloatArray:
    """Multiply matrices of the last two axes, for each row of maps."""
    return x @ y


def _shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    left, right = (graph.tensors[name].shape for name in op.inputs)
    return (*left[:3], right[3])


def _operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    left, right = shapes
    return [(1, left[1], left[3], right[3] if len(right) == len(left) else 1)]


def _rules(graph: ir.Graph, op: ir.Op) -> Iterator[str]:
    terms = graph.tensors[op.inputs[0]].shape[3]
    if terms > _MOST_TERMS:
        yield f"must sum at most {_MOST_TERMS} products, not {terms}"


def _example(random: Random) -> ir.Graph:
    """Multiply a map by some of its rows, turned, or by one of its own size."""
    heads, rows, terms = (int(size) for size in random.integers(1, [4, 9, 20]))
    product = ir.Op("matmul", ("x", "r"), ("y",))
    if random.random() < 0.3:
        shape = (1, heads, terms, terms)
        return graph_of((shape,) * 3, (), ir.Op("relu", ("x",), ("r",)), product)
    window = ir.Window((1, int(random.integers(1, rows + 1))))
    columns = window.output(heads, rows)[1]
    pool = ir.Op("max_pool2d", ("x",), ("p",), window)
    turn = ir.Op("transpose", ("p",), ("r",), attributes=Order((1, 3, 2)))
    before = (1, heads, rows, terms), (1, heads, columns, terms), (1, heads, terms, columns)
    return graph_of((*before, (1, heads, rows, columns)), (), pool, turn, product)


# Readers


def _read_attention(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    """Add softmax(query key^T / sqrt(size) + mask) value, for each head."""
    query, key, value = (
        last_as_channels(reader, node, activation(a[name]), f".{name}")
        for name in ("query", "key", "value")
    )
    require(rank_of(reader, node) > 2, "attention between features, which mixes the examples")
    require(not a["dropout_p"], "dropout that is on in evaluation")
    scale = 1 / math.sqrt(query.shape[3]) if a["scale"] is None else float(a["scale"])
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


def _scaled(reader: ModelReader, node: Any, x: ir.Tensor, scale: float) -> ir.Tensor:
    channels = x.shape[3]
    operands = [
        x,
        reader.constant(node, "scale", np.full(channels, scale)),
        reader.constant(node, "shift", np.zeros(channels)),
    ]
    return reader.op("affine", node, operands, x.shape, suffix=".scaled")


def _masked(reader: ModelReader, node: Any, scores: ir.Tensor, a: Mapping[str, Any]) -> ir.Tensor:
    """Add what is added to scores; what leaves places out cannot be."""
    left_out = "attention that leaves places out; all tokens must see all, as scores are int8"
    require(not a["is_causal"] or scores.shape[2] == 1, left_out)
    if a["attn_mask"] is None:
        return scores
    mask = constant(a["attn_mask"], "masks")
    if mask.dtype == np.bool_:
        require(bool(mask.all()), left_out)
        return scores
    require(bool(np.isfinite(mask).all()), left_out)
    rank = rank_of(reader, node)
    laid = mask.reshape((1,) * (4 - mask.ndim) + mask.shape) if mask.ndim < rank else mask
    laid = laid if laid.ndim == 4 else laid[:, None]
    wide = np.broadcast_shapes(laid.shape, scores.shape)
    require(wide == scores.shape, f"a mask of shape {mask.shape} for scores {scores.shape[1:]}")
    operand = reader.constant(node, "mask", laid)
    return reader.op("add", node, [scores, operand], scores.shape, suffix=".masked")


SPECS = (
    Spec(
        "matmul",
        "product of matrices",
        _matmul,
        _example,
        activations=2,
        shape=_shape,
        operands=_operands,
        rules=_rules,
        reads_map=True,
        scale="product",
        symmetric=(1,),
        aten={
            **dict.fromkeys(("aten.matmul.default", "aten.bmm.default"), read_matmul_aten),
            "aten.scaled_dot_product_attention.default": _read_attention,
        },
        onnx={"MatMul": read_matmul_onnx},
    ),
)
