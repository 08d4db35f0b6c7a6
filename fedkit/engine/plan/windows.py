"""Windows that slide over a plane."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from fedkit.engine.plan.structure import Pair, Shape


class Sliding(Protocol):
    """What slides."""

    @property
    def kernel(self) -> Pair:
        """(height, width)."""

    @property
    def stride(self) -> Pair:
        """Pixels from one window to the next."""

    @property
    def padding(self) -> Pair:
        """Pixels around the plane."""


def window_problems(
    source: Shape, target: Shape, op: Sliding, dilation: Pair = (1, 1)
) -> Iterator[str]:
    """Yield what is wrong with windows that turn one plane into another."""
    if min(*op.kernel, *op.stride, *dilation) < 1 or min(op.padding) < 0:
        yield (
            f"has kernel {op.kernel}, stride {op.stride}, dilation {dilation}, padding "
            f"{op.padding}; the first three must be at least 1, padding at least 0"
        )
    plane = window_plane(source, op.kernel, op.stride, op.padding, dilation)
    if target[1:] != plane:
        yield (
            f"turns a plane of {source[1:]} into {target[1:]}; its kernel, stride, padding and "
            f"dilation give {plane}"
        )


def window_plane(
    source: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)
) -> Pair:
    """Return (height, width) of the windows over a plane.

    >>> window_plane((3, 32, 32), kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    (16, 16)
    """
    height, width = (
        (source[1 + axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1)
        // stride[axis]
        + 1
        for axis in (0, 1)
    )
    return height, width
