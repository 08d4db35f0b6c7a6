"""Values that all examples have: parameters that a model adds, multiplies or joins, and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedkit.graph import ir
from fedkit.graph.operands import ConstantOperand, constant, require
from fedkit.graph.places import take
from fedkit.graph.spec import ModelReader, Random, Spec, any_shape, graph_of
from fedkit.graph.tokens import last_as_channels


def _spread(op: ir.Op, graph: ir.Graph, values: ir.FloatArray) -> ir.FloatArray:
    return values


def _example(random: Random) -> ir.Graph:
    shape = any_shape(random)
    op = ir.Op("spread", ("c0",), ("y",))
    return graph_of((shape, shape), (random.standard_normal(shape),), op)


def spread(reader: ModelReader, node: Any, value: Any, rank: int, suffix: str) -> ir.Tensor:
    """Add a parameter, or numbers, as a value that all examples have.

    Args:
        reader: Of a model that trains.
        node: What reads it.
        value: Of a shape that goes with what has `rank` dimensions, of which the first is that of
            the examples.
        rank: Of what the model has, examples included.
        suffix: Of the name.

    Raises:
        ConstantOperand: It is computed from parameters.
        Unsupported: It is another for each example.
    """
    is_learned, given = reader.learns(value), np.asarray(constant(value))
    require(given.ndim <= rank, f"a constant of shape {given.shape} beside a value of rank {rank}")
    whole = given.reshape((1,) * (rank - given.ndim) + given.shape)
    require(len(whole) == 1, f"a constant of shape {given.shape}, another for each example")
    laid, shown = ir.to_graph_layout(whole), reader.shown_by(value) if is_learned else None
    operand = reader.constant(node, f"values{suffix}", laid, shown)
    if is_learned and not operand.parameter:
        raise ConstantOperand("an operand is computed from parameters; a parameter itself can be")
    return reader.op("spread", node, [operand], laid.shape, suffix=suffix)


def beside(
    reader: ModelReader, node: Any, x: ir.Tensor, value: Any, rank: int
) -> tuple[ir.Tensor, ir.Tensor, bool]:
    """Add a parameter as one that goes with an activation in sums and products.

    Returns:
        The activation, the parameter, and whether both have the last axis of the model as channels.

    Raises:
        Unsupported: The activation would be repeated, or as `spread`.
    """
    y = spread(reader, node, value, rank, ".learned")
    fits = len(x.shape) == len(y.shape) and all(
        size in (1, whole) for size, whole in zip(y.shape, x.shape, strict=True)
    )
    require(fits, f"a parameter of shape {y.shape[1:]} beside a value of {x.shape[1:]}")
    has_last = len(x.shape) == _OF_MAP and y.shape[1] == y.shape[3] == 1 != y.shape[2]
    is_of_last = has_last and x.shape != y.shape
    if is_of_last:
        x, y = (
            last_as_channels(reader, node, each, f".tokens{n}") for n, each in enumerate((x, y))
        )
    return x, _widened(reader, node, x, y), is_of_last


_OF_MAP = 4


def _widened(reader: ModelReader, node: Any, x: ir.Tensor, y: ir.Tensor) -> ir.Tensor:
    """Repeat a value as often as another has places, but one for each channel, which goes so."""
    is_of_channels = y.shape[1:-1] in ((), (1, 1)) and y.shape[-1] == x.shape[-1]
    if is_of_channels or x.shape == y.shape:
        return y
    axes = {1: -1, 2: 1, 3: 2} if len(x.shape) == _OF_MAP else {1: -1}
    lists = {of: [0] * x.shape[axis] for of, axis in axes.items() if y.shape[axis] != x.shape[axis]}
    return take(reader, node, y, lists, ".widened")


SPECS = (
    Spec(
        "spread",
        "values of all examples",
        _spread,
        _example,
        activations=0,
        constants=1,
        only_trains=True,
    ),
)
