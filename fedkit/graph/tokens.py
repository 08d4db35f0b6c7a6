"""Layers over the last axis of a model's value: the graph has it as channels while they compute.

Of tokens [n, tokens, channels] they see a map [1, 1, tokens, channels], of [n, height, width,
channels] one as images are. `fedkit.graph.late_moves` lets no move be between two such layers.
"""

from __future__ import annotations

from typing import Any

from fedkit.graph import ir
from fedkit.graph.layouts import SERIES
from fedkit.graph.operands import activation, rank_of, require
from fedkit.graph.ops.transpose import Order
from fedkit.graph.spec import ModelReader

LAST_TO_CHANNELS = {SERIES: (1, 3, 2), 4: (3, 1, 2)}
_CHANNELS_TO_LAST = {SERIES: (1, 3, 2), 4: (2, 3, 1)}
"""Dimensions in the model -> axes of the graph, in the order of the result."""


def last_as_channels(
    reader: ModelReader, node: Any, x: ir.Tensor, suffix: str = ".tokens"
) -> ir.Tensor:
    """Add what turns the last axis that the model gives a value into channels.

    Args:
        reader: What reads the model.
        node: The node that reads the value; all its activations have as many dimensions.
        x: The value: of features it is returned as it is.
        suffix: Of the name for what is turned.
    """
    if len(x.shape) == 2:
        return x
    return turned(reader, node, x, LAST_TO_CHANNELS[rank_of(reader, node)], suffix)


def channels_as_last(reader: ModelReader, node: Any, x: ir.Tensor) -> ir.Tensor:
    """Add what turns channels back into the last axis of the model: the node's own result."""
    if len(x.shape) == 2:
        return x
    return turned(reader, node, x, _CHANNELS_TO_LAST[rank_of(reader, node)], "")


def product_of(reader: ModelReader, node: Any, left: Any, right: Any) -> ir.Tensor:
    """Add a product of two activations, whose last two axes in the model are of matrices."""
    values = activation(left), activation(right)
    require(rank_of(reader, node) > 2, "a product of features, which mixes the examples")
    x, y = (last_as_channels(reader, node, each, f".{n}") for n, each in enumerate(values))
    return channels_as_last(reader, node, multiplied(reader, node, x, y))


def multiplied(
    reader: ModelReader, node: Any, x: ir.Tensor, y: ir.Tensor, suffix: str = ".product"
) -> ir.Tensor:
    """Add a product of maps, of which the last two axes are of matrices."""
    fits = x.shape[1] == y.shape[1] and x.shape[3] == y.shape[2]
    require(fits, f"a product of matrices {x.shape[1:]} and {y.shape[1:]}; they must go together")
    return reader.op("matmul", node, [x, y], (*x.shape[:3], y.shape[3]), suffix=suffix)


def turned(
    reader: ModelReader, node: Any, x: ir.Tensor, axes: tuple[int, int, int], suffix: str
) -> ir.Tensor:
    """Add what gives the axes of a map another order."""
    shape = (1, *(x.shape[axis] for axis in axes))
    return reader.op("transpose", node, [x], shape, suffix=suffix, attributes=Order(axes))
