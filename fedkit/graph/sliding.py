"""Windows as models give them: of torch a size or two, of ONNX a node's attributes.

One over a series is one of height 1 over a map of height 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fedkit.graph import ir
from fedkit.graph.elements import Moved
from fedkit.graph.layouts import SERIES
from fedkit.graph.operands import activation, integers, rank_of, require, require_small
from fedkit.graph.spec import Aten, ModelReader, OnnxNode

_OF_HEIGHT: Mapping[str, int] = {
    "kernel_size": 1,
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "output_size": 1,
    "output_padding": 0,
}
"""What an operator over maps says of their height where it does as that over series."""


def maps(read: Aten) -> Aten:
    """Return what reads an operator over maps, as `read` does where it does not read a series."""
    return partial(_read_maps, read)


def series(read: Aten) -> Aten:
    """Return what reads an operator over series, by what reads that over maps."""
    return partial(_read_series, read)


def _read_maps(
    read: Aten, reader: ModelReader, node: Any, a: Mapping[str, Any]
) -> ir.Tensor | Moved:
    require(
        rank_of(reader, node) != SERIES,
        "a series [n, channels, length] where torch takes three dimensions for those of one image; "
        "give it [n, channels, height, width], or take the layer for series, such as Conv1d",
    )
    return read(reader, node, a)


def _read_series(
    read: Aten, reader: ModelReader, node: Any, a: Mapping[str, Any]
) -> ir.Tensor | Moved:
    return read(reader, node, {name: _with_height(name, value) for name, value in a.items()})


def _with_height(name: str, value: Any) -> Any:
    """Return an argument of an operator over series as that of one over maps."""
    is_size = name in _OF_HEIGHT and not isinstance(value, str)
    if not is_size or value == []:
        return value
    return [_OF_HEIGHT[name], *([value] if isinstance(value, int) else value)]


def pair(value: Sequence[int] | int) -> tuple[int, int]:
    """Return what torch lets stand for (height, width): two numbers, or one for both."""
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def reaching(x: ir.Tensor, out: ir.Shape, window: ir.Window, before: Sequence[int]) -> ir.Window:
    """Pad `window` by `before` at (top, left), and at the end by what its steps reach.

    Where the stride leaves a remainder, a model may pad more at the bottom and right than it
    reads; without that excess the padding often is the one that TFLite calls "SAME".
    """
    pads: list[int] = []
    for axis, first in enumerate(before):
        reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1
        needed = (out[1 + axis] - 1) * window.stride[axis] + reach
        pads += [first, max(0, needed - x.shape[1 + axis] - first)]
    require_small((1, x.shape[1] + sum(pads[:2]), x.shape[2] + sum(pads[2:]), x.shape[3]))
    return replace(window, padding=(pads[0], pads[1], pads[2], pads[3]))


def sizes(reader: ModelReader, node: OnnxNode, name: str) -> tuple[int, int]:
    """Return an attribute of a number for height and width, each 1 if it is left out."""
    count = rank_of(reader, node) - 2
    found = (1, *integers(node, name, count, 1))
    return found[-2], found[-1]


def pads(reader: ModelReader, node: OnnxNode) -> tuple[int, ...]:
    """Return the padding of a node at (top, left, bottom, right)."""
    if rank_of(reader, node) != SERIES:
        return integers(node, "pads", 4, 0)
    first, last = integers(node, "pads", 2, 0)
    return 0, first, 0, last


def of_onnx(
    reader: ModelReader, node: OnnxNode, kernel: tuple[int, int]
) -> tuple[ir.Window, tuple[int, int]]:
    """Return the window of a node without padding, and its padding at (top, left)."""
    strides, dilations = sizes(reader, node, "strides"), sizes(reader, node, "dilations")
    window = ir.Window(kernel, strides, dilations)
    how, around = node.attribute("auto_pad", "NOTSET"), pads(reader, node)
    if how in ("SAME_UPPER", "SAME_LOWER"):
        size, out = activation(node.operand(0), 4).shape[1:3], reader.shape_of(node)[1:3]
        for axis in range(2):
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            meets = reach == 1 or (out[axis] - 1) * strides[axis] + reach >= size[axis]
            require(meets, f"auto_pad = {how} that would crop, in which runtimes differ")
        top, bottom, left, right = ir.same_padding(size, out, window)
        return window, (top, left) if how == "SAME_UPPER" else (bottom, right)
    require(how in ("NOTSET", "VALID"), f"auto_pad = {how}")
    require(min(around) >= 0, f"pads = {list(around)}; nothing can shrink")
    return window, (around[0], around[1]) if how == "NOTSET" else (0, 0)
