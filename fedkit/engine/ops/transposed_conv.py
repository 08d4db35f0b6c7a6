"""Transposed convolutions, as convolutions of another order of weights; and what plans them."""

from __future__ import annotations

from typing import Any

from fedkit.engine.ops.conv import FloatConv
from fedkit.engine.ops.conv_integer import INTEGER
from fedkit.engine.ops.depth_to_space import DepthToSpace
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.conv import TransposedConv
from fedkit.engine.plan.windows import window_plane
from fedkit.graph import ir
from fedkit.graph.phases import Transposed, TransposedAxis, reach


def _planned(maker: Any, op: ir.Op) -> int:
    """Add the convolution, and what makes its channels pixels and cuts them."""
    how = op.attributes
    assert isinstance(how, Transposed)  # the verifier's rule
    source, target = maker.value(op), maker.target(op)
    height, width = maker.graph.tensors[op.inputs[1]].shape[2:]
    shape, size = maker.tensors[source].shape, (int(height), int(width))
    vertical, horizontal = (
        TransposedAxis(pixels, reach(taps, gap), step, first, out)
        for pixels, taps, gap, step, first, out in zip(
            shape[1:], size, how.dilation, how.stride, how.first, how.size, strict=True
        )
    )
    padding = max(0, *vertical.padding), max(0, *horizontal.padding)
    plane = window_plane(shape, (vertical.kernel, horizontal.kernel), (1, 1), padding)
    channels = maker.tensors[target].shape[0] * how.stride[0] * how.stride[1]
    phases = maker.new((channels, *plane))
    name, bias = maker.weight(op), maker.parameter(op, 2, 0.0)
    maker.ops.append(
        TransposedConv(source, phases, name, size, how.stride, how.dilation, padding, how.groups)
    )
    first = vertical.first_of(padding[0]), horizontal.first_of(padding[1])
    maker.ops.append(DepthToSpace(phases, target, how.stride, first, bias))
    return int(target)


_WIDE = TransposedConv(1, 2, "w", (3, 2), (2, 1), (1, 2), (1, 2), 2)

FAMILY = Family(
    TransposedConv,
    (
        Example(
            TransposedConv(1, 2, "w", (4, 3), (2, 2), (1, 1), (1, 1), 1),
            ((3, 3, 4), (3, 3, 4), (8, 4, 5)),
            {"w": (3, 2, 4, 3)},
        ),
        Example(_WIDE, ((4, 3, 4), (4, 3, 4), (8, 4, 6)), {"w": (4, 2, 3, 2)}),
        Example(
            TransposedConv(1, 2, "w", (1, 2), (1, 3), (1, 1), (0, 0), 1),
            ((3, 1, 4), (3, 1, 4), (6, 1, 4)),
            {"w": (3, 2, 2)},
        ),
    ),
    FloatConv,
    INTEGER,
    {"conv_transpose2d": _planned},
)
