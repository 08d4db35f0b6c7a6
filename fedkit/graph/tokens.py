"""Layers over the last axis of a model's value: the graph has it as channels while they compute.

Of tokens [n, tokens, channels] they see a map [1, 1, tokens, channels], of [n, height, width,
channels] one as images are. `fedkit.graph.late_moves` lets no move be between two such layers.
"""

from __future__ import annotations

from typing import Any

from fedkit.graph import ir
from fedkit.graph.layouts import SERIES
from fedkit.graph.operands import rank_of
from fedkit.graph.ops.transpose import Order
from fedkit.graph.spec import ModelReader

_LAST_TO_CHANNELS = {SERIES: (1, 3, 2), 4: (3, 1, 2)}
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
    return _turned(reader, node, x, _LAST_TO_CHANNELS[rank_of(reader, node)], suffix)


def channels_as_last(reader: ModelReader, node: Any, x: ir.Tensor) -> ir.Tensor:
    """Add what turns channels back into the last axis of the model: the node's own result."""
    if len(x.shape) == 2:
        return x
    return _turned(reader, node, x, _CHANNELS_TO_LAST[rank_of(reader, node)], "")


def _turned(
    reader: ModelReader, node: Any, x: ir.Tensor, axes: tuple[int, int, int], suffix: str
) -> ir.Tensor:
    shape = (1, *(x.shape[axis] for axis in axes))
    return reader.op("transpose", node, [x], shape, suffix=suffix, attributes=Order(axes))
