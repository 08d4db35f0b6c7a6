"""Quotients of two activations, of which the divisor is never below 0.

Linear attention divides by a sum of products that are not below 0. What divides is taken to be at
least some number, so that a quotient is finite wherever a model's is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fedkit.graph import ir
from fedkit.graph.operands import activation, require
from fedkit.graph.ops.arithmetic import DIVISIONS, Least
from fedkit.graph.spec import (
    ModelReader,
    Random,
    Spec,
    any_shape,
    broadcast_operands,
    broadcast_shape,
    graph_of,
)

_STEP = 1 / 256  # of a sigmoid, once integer


def least_of(op: ir.Op) -> float:
    """Return what an op's divisor is at least."""
    assert isinstance(op.attributes, Least)  # the verifier's rule
    return op.attributes.value


def _div(op: ir.Op, graph: ir.Graph, x: ir.FloatArray, y: ir.FloatArray) -> ir.FloatArray:
    least = least_of(op)
    with np.errstate(divide="ignore", invalid="ignore"):  # calibration names what is not finite
        return np.asarray(x / (np.maximum(y, np.float32(least)) if least else y))


def _rules(graph: ir.Graph, op: ir.Op) -> Iterator[str]:
    if not 0 <= least_of(op) < math.inf:
        yield f"has a divisor of at least {least_of(op)}; it must be 0 or above, and finite"
    divisor = graph.tensors[op.inputs[1]]
    if divisor.dtype == "int8" and divisor.quantization and divisor.zero_point != -128:
        yield (
            f"must divide by what is never below 0, as a product of ReLUs is; {divisor.name!r} is "
            f"down to {(-128 - divisor.zero_point) * divisor.scale:.3g}"
        )


def _example(random: Random) -> ir.Graph:
    """Divide by a sigmoid of what is divided, or of the largest of rows or of all pixels."""
    shape, how = any_shape(random), Least(_STEP * int(random.integers(1, 20)))
    divide = ir.Op("div", ("x", "d"), ("y",), attributes=how)
    gate = ir.Op("sigmoid", ("r",), ("d",))
    if len(shape) == 2 or random.random() < 0.4:
        return graph_of((shape,) * 4, (), ir.Op("relu", ("x",), ("r",)), gate, divide)
    kernel = (shape[1], shape[2] if random.random() < 0.5 else 1)
    window = ir.Window(kernel, kernel)
    part = (1, *window.output(*shape[1:3]), shape[3])
    pool = ir.Op("max_pool2d", ("x",), ("r",), window)
    return graph_of((shape, part, part, shape), (), pool, gate, divide)


def read_quotient(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    """Add x / max(y, least), as `fedkit.nn.linear_attention` says it."""
    x, y = activation(a["x"]), activation(a["y"])
    sizes = zip(x.shape, y.shape, strict=False)
    fits = len(x.shape) == len(y.shape) and all(a == b or 1 in (a, b) for a, b in sizes)
    require(fits, f"a quotient of shapes {x.shape} and {y.shape}; they must agree")
    return reader.op("div", node, [x, y], attributes=Least(float(a["least"])))


SPECS = (
    Spec(
        "div",
        "quotient",
        _div,
        _example,
        activations=2,
        shape=broadcast_shape,
        operands=broadcast_operands,
        rules=_rules,
        scale="free",
        attributes=Least,
        aten={"fedkit.quotient.default": read_quotient, **DIVISIONS["aten"]},
        onnx=DIVISIONS["onnx"],
        of_one_place=True,
    ),
)
