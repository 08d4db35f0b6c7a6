"""Sums, differences and products of two, and a scale and shift where one of two is a constant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from fedkit.graph import ir
from fedkit.graph.attention_masks import is_far, with_far
from fedkit.graph.layouts import SERIES
from fedkit.graph.operands import (
    activation,
    constant,
    rank_of,
    require,
    require_broadcast,
)
from fedkit.graph.ops.spread import beside
from fedkit.graph.spec import (
    Aten,
    ModelReader,
    Onnx,
    OnnxNode,
    Random,
    Real,
    Scale,
    Spec,
    an_activation,
    any_shape,
    broadcast_operands,
    broadcast_shape,
    graph_of,
)
from fedkit.graph.tokens import channels_as_last

FloatArray = ir.FloatArray
Operator = Literal["add", "sub", "mul", "div"]


@dataclass(frozen=True)
class Least(ir.Attributes):
    """What a divisor is taken to be at least; 0 where a model says nothing."""

    value: float = 0.0


def _add(op: ir.Op, graph: ir.Graph, x: FloatArray, y: FloatArray) -> FloatArray:
    return x + y


def _sub(op: ir.Op, graph: ir.Graph, x: FloatArray, y: FloatArray) -> FloatArray:
    return x - y


def _mul(op: ir.Op, graph: ir.Graph, x: FloatArray, y: FloatArray) -> FloatArray:
    return x * y


def _add_example(random: Random) -> ir.Graph:
    shape, other = any_shape(random), ir.Op("relu", ("x",), ("r",))
    add = ir.Op("add", ("x", "r"), ("y",), activation=an_activation(random))
    return graph_of((shape,) * 3, (), other, add)


def _pair_example(kind: ir.Kind, random: Random) -> ir.Graph:
    """Return two of one shape, a gate per channel, one of a map, or a constant, at either place."""
    shape, how = any_shape(random), random.random()
    if how < 0.25:
        part = tuple(size if random.random() < 0.6 else 1 for size in shape[1:])
        constant = random.standard_normal((1, *part))
        op = ir.Op(kind, _either(random, "x", "c0"), ("y",))
        return graph_of((shape, shape), (constant,), op)
    if how < 0.65 and len(shape) == 4:
        gate = ir.Op("mean", ("x",), ("r",))
        end = (1, 1, 1, shape[3])
        op = ir.Op(kind, _either(random, "x", "r"), ("y",))
        return graph_of((shape, end, shape), (), gate, op)
    other = ir.Op("relu", ("x",), ("r",))
    return graph_of((shape,) * 3, (), other, ir.Op(kind, _either(random, "x", "r"), ("y",)))


def _either(random: Random, x: str, other: str) -> tuple[str, str]:
    return (x, other) if random.random() < 0.5 else (other, x)


def _pair(
    kind: ir.Kind,
    layer: str,
    real: Real,
    scale: Scale,
    aten: Mapping[str, Aten],
    onnx: Mapping[str, Onnx],
) -> Spec:
    return Spec(
        kind,
        layer,
        real,
        partial(_pair_example, kind),
        activations=2,
        takes_constant=True,
        shape=broadcast_shape,
        operands=broadcast_operands,
        scale=scale,
        of_one_place=True,
        aten=aten,
        onnx=onnx,
    )


# Readers


def affine(
    reader: ModelReader, node: Any, x: ir.Tensor, scale: ir.Array, shift: ir.Array
) -> ir.Tensor:
    """Add a scale and a shift per channel."""
    operands = reader.constant(node, "scale", scale), reader.constant(node, "shift", shift)
    return reader.op("affine", node, [x, *operands])


def _read(reader: ModelReader, node: Any, operator: Operator, left: Any, right: Any) -> ir.Tensor:
    """Add a sum, difference, product or quotient of activations and constants.

    A number, or one per channel, becomes part of what is before it where that is linear.
    """
    if isinstance(left, ir.Tensor) and isinstance(right, ir.Tensor):
        return _read_pair(operator, reader, node, left, right)
    swapped = not isinstance(left, ir.Tensor)
    x, value = activation(right if swapped else left), left if swapped else right
    if reader.trains and reader.learns(value):
        require(operator != "div", "a division by a parameter")
        return _beside_spread(operator, reader, node, x, value, swapped)
    numbers = np.asarray(constant(value), np.float64)
    if operator == "add" and np.isneginf(numbers).any():
        numbers = with_far(numbers)
    require(operator != "div" or not swapped, "a division by an activation")
    if operator == "div":
        require(bool(numbers.all()), "a division by zero")
        operator, numbers = "mul", 1 / numbers
    y = _on_maps(numbers, rank_of(reader, node))
    if not y.ndim and y == (operator == "mul") and not (swapped and operator == "sub"):
        return x
    channels = _per_channel(x, y)
    if channels is None:
        if reader.trains:
            return _beside_spread(operator, reader, node, x, numbers, swapped)
        operand = reader.constant(node, "operand", _as_operand(x, y))
        return _read_pair(operator, reader, node, *((operand, x) if swapped else (x, operand)))
    one, none = np.ones_like(channels), np.zeros_like(channels)
    if operator == "mul":
        return affine(reader, node, x, channels, none)
    if operator == "add":
        return affine(reader, node, x, one, channels)
    return affine(reader, node, x, *((-one, channels) if swapped else (one, -channels)))


def _beside_spread(
    operator: Operator, reader: ModelReader, node: Any, x: ir.Tensor, value: Any, swapped: bool
) -> ir.Tensor:
    """Add a sum, difference or product of an activation and what all examples have."""
    x, y, is_of_last = beside(reader, node, x, value, rank_of(reader, node))
    sides = (y, x) if swapped else (x, y)
    if not is_of_last:
        return reader.op(operator, node, sides, x.shape)
    made = reader.op(operator, node, sides, x.shape, suffix=".of_tokens")
    return channels_as_last(reader, node, made)


def _read_pair(
    kind: ir.Kind, reader: ModelReader, node: Any, x: ir.Tensor, y: ir.Tensor
) -> ir.Tensor:
    sizes = zip(x.shape, y.shape, strict=False)
    agree = len(reader.ranks_of(node)) == 1 and all(a == b or 1 in (a, b) for a, b in sizes)
    what = {"add": "an addition", "sub": "a difference", "mul": "a product", "div": "a quotient"}
    require(agree, f"{what[kind]} of shapes {x.shape} and {y.shape}; they must agree")
    return reader.op(kind, node, [x, y], attributes=Least() if kind == "div" else None)


def _on_maps(value: ir.Array, rank: int) -> ir.Array:
    """Return a constant that is broadcast against a value of that rank as one against NCHW."""
    if rank != SERIES or not value.ndim:
        return value
    require(value.ndim <= rank, f"a constant of shape {value.shape} beside a value of rank {rank}")
    return ir.as_maps(value.reshape((1,) * (rank - value.ndim) + value.shape))


def _as_operand(x: ir.Tensor, y: ir.Array) -> ir.Array:
    """Return a constant that is broadcast against NCHW, in the layout of the graph."""
    rank = len(x.shape)
    require(y.ndim <= rank, f"a constant of shape {y.shape} beside a value of rank {rank}")
    whole = y.reshape((1,) * (rank - y.ndim) + y.shape)
    require(len(whole) == 1, f"a constant of shape {y.shape}, another for each example")
    laid = np.moveaxis(whole, 1, 3) if rank == 4 else whole
    widened = np.broadcast_shapes(laid.shape, x.shape)
    require(widened == x.shape, f"a constant of shape {y.shape}, which widens {x.shape}")
    return laid


def _per_channel(x: ir.Tensor, value: ir.Array) -> ir.Array | None:
    """Return a constant that is broadcast against NCHW as one per channel; None if it is not."""
    rank, count = len(x.shape), x.shape[-1]
    shape = (1,) * (rank - value.ndim) + value.shape
    is_one = value.ndim <= rank and math.prod(shape) in (1, count) and shape[1] == value.size
    return np.broadcast_to(value.reshape(-1), count) if is_one else None


def _read_aten(
    operator: Operator, reader: ModelReader, node: Any, a: Mapping[str, Any]
) -> ir.Tensor:
    right, alpha = a["other"], a.get("alpha", 1)
    if alpha != 1:
        is_value = isinstance(right, ir.Tensor)
        require(is_value or not reader.learns(right), "a parameter times alpha")
        right = _read(reader, node, "mul", right, alpha) if is_value else right * alpha
    return _read(reader, node, operator, a["self"], right)


def _read_masked_fill(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    """Add to scores what leaves places out, or a product with 0."""
    filled, value = constant(a["mask"], "masks"), float(constant(a["value"]))
    if value == 0:
        return _read(reader, node, "mul", a["self"], (~filled).astype(np.float64))
    mask = with_far(np.where(filled, value, 0.0))
    is_of_scores = not filled.any() or bool(is_far(mask).any())
    require(is_of_scores, f"values filled with {value:g} where a mask says; 0 or -inf can be")
    return _read(reader, node, "add", a["self"], mask)


def _read_rsub(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    require(a["alpha"] == 1, f"a difference with alpha = {a['alpha']}; only 1 can be")
    return _read(reader, node, "sub", a["other"], a["self"])


def _read_neg(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    return _read(reader, node, "mul", a["self"], -1.0)


def _read_onnx(operator: Operator, reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    left, right = node.inputs
    return _read(reader, node, operator, left, right)


def _read_sum_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    """Add a sum of any number of values."""
    require_broadcast("Sum", node)
    first, *others = node.inputs
    if not others:
        return activation(first)
    *inner, last = others
    for number, each in enumerate(inner):
        left, right = activation(first), activation(each)
        same = left.shape == right.shape == reader.shape_of(node)
        require(same, f"a sum of {len(node.inputs)} values, and not of one shape")
        first = reader.op("add", node, [left, right], suffix=f".{number}")
    return _read(reader, node, "add", first, last)


def _read_neg_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    return _read(reader, node, "mul", node.operand(0), -1.0)


def _read_power(reader: ModelReader, node: Any, x: ir.Tensor, exponent: Any) -> ir.Tensor:
    """Add x to the power of a number."""
    value = np.asarray(exponent)
    require(value.size == 1 and value == 2, f"a power of {value.tolist()}; 2 can be")
    return reader.op("mul", node, [x, x])


def _read_pow(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    return _read_power(reader, node, activation(a["self"]), a["exponent"])


def _read_square(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    return _read_power(reader, node, activation(a["self"]), 2)


def _read_pow_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    exponent = constant(node.operand(1), "exponents")
    return _read_power(reader, node, activation(node.operand(0)), exponent)


def _spellings(names: Sequence[str], read: Aten) -> dict[str, Aten]:
    """Return operators of torch, each of which takes a tensor or a number, and may be in place."""
    both, places = ("Tensor", "Scalar"), ("", "_")
    return {f"aten.{n}{place}.{each}": read for n in names for place in places for each in both}


_SUMS = _spellings(("add",), partial(_read_aten, "add"))
_DIFFERENCES = {
    **_spellings(("sub", "subtract"), partial(_read_aten, "sub")),
    **_spellings(("rsub",), _read_rsub),
}
DIVISIONS: dict[str, Any] = {
    "aten": _spellings(("div", "divide", "true_divide"), partial(_read_aten, "div")),
    "onnx": {"Div": partial(_read_onnx, "div")},
}
"""What reads a division: by a constant it is a product."""
_PRODUCTS = {
    **_spellings(("mul", "multiply"), partial(_read_aten, "mul")),
    **DIVISIONS["aten"],
}
_NEGATIONS = dict.fromkeys(
    ("aten.neg.default", "aten.neg_.default", "aten.negative.default"), _read_neg
)
_FILLS = {
    f"aten.masked_fill{place}.{each}": _read_masked_fill
    for place in ("", "_")
    for each in ("Scalar", "Tensor")
}
_POWERS: dict[str, Aten] = {
    "aten.pow.Tensor_Scalar": _read_pow,
    "aten.pow_.Scalar": _read_pow,
    "aten.square.default": _read_square,
    "aten.square_.default": _read_square,
}

_ADD: dict[str, Onnx] = {"Add": partial(_read_onnx, "add"), "Sum": _read_sum_onnx}
_SUB: dict[str, Onnx] = {"Sub": partial(_read_onnx, "sub")}
_MUL: dict[str, Onnx] = {"Mul": partial(_read_onnx, "mul"), **DIVISIONS["onnx"]}

AFFINE: dict[str, Any] = {
    "aten": {**_SUMS, **_DIFFERENCES, **_PRODUCTS, **_NEGATIONS, **_FILLS},
    "onnx": {**_ADD, **_SUB, **_MUL, "Neg": _read_neg_onnx},
}
"""What reads arithmetic with a constant per channel."""

SPECS = (
    Spec(
        "add",
        "add",
        _add,
        _add_example,
        activations=2,
        takes_constant=True,
        shape=broadcast_shape,
        operands=broadcast_operands,
        fuses_activation=True,
        of_one_place=True,
        aten={**_SUMS, **_FILLS},
        onnx=_ADD,
    ),
    _pair("sub", "difference", _sub, "rescaled", _DIFFERENCES, _SUB),
    _pair(
        "mul", "product", _mul, "product", {**_PRODUCTS, **_POWERS}, {**_MUL, "Pow": _read_pow_onnx}
    ),
)
