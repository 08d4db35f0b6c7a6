"""Windows as models give them: of torch a size or two, of ONNX a node's attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedkit.graph import ir
from fedkit.graph.operands import activation, integers, require, require_small
from fedkit.graph.spec import ModelReader, OnnxNode


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


def of_onnx(
    reader: ModelReader, node: OnnxNode, kernel: tuple[int, int]
) -> tuple[ir.Window, tuple[int, int]]:
    """Return the window of a node without padding, and its padding at (top, left)."""
    strides, dilations = integers(node, "strides", 2, 1), integers(node, "dilations", 2, 1)
    window = ir.Window(kernel, (strides[0], strides[1]), (dilations[0], dilations[1]))
    how, pads = node.attribute("auto_pad", "NOTSET"), integers(node, "pads", 4, 0)
    if how in ("SAME_UPPER", "SAME_LOWER"):
        size, out = activation(node.operand(0), 4).shape[1:3], reader.shape_of(node)[1:3]
        for axis in range(2):
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            meets = reach == 1 or (out[axis] - 1) * strides[axis] + reach >= size[axis]
            require(meets, f"auto_pad = {how} that would crop, in which runtimes differ")
        top, bottom, left, right = ir.same_padding(size, out, window)
        return window, (top, left) if how == "SAME_UPPER" else (bottom, right)
    require(how in ("NOTSET", "VALID"), f"auto_pad = {how}")
    require(min(pads) >= 0, f"pads = {list(pads)}; nothing can shrink")
    return window, (pads[0], pads[1]) if how == "NOTSET" else (0, 0)
