"""A transposed convolution as a convolution of stride 1 whose channels become blocks of pixels.

A pixel i of the input adds its kernel to the places stride * i + dilation * k of a map, of which
the rows and columns before `first` are cut off. So the places of one remainder by the stride see a
kernel of their own over neighbouring pixels: every stride-th tap, in reverse. Where the taps are no
multiple of the stride, the last ones of some of these kernels are zeros by structure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.graph import ir

Pair = tuple[int, int]


@dataclass(frozen=True)
class Transposed(ir.Attributes):
    """How a transposed convolution goes; pairs are (vertical, horizontal).

    Attributes:
        stride: From what one pixel adds to to what the next adds to.
        dilation: From one tap of the kernel to the next.
        first: What is cut off before the result; what torch calls padding.
        size: Of the result, height and width.
        groups: Of channels.
    """

    stride: Pair
    dilation: Pair
    first: Pair
    size: Pair
    groups: int


@dataclass(frozen=True)
class TransposedAxis:
    """One axis of a transposed convolution.

    Attributes:
        size: Of the input.
        taps: Of the kernel, with the zeros of a dilation.
        stride: See `Transposed`.
        first: See `Transposed`.
        out: Size of the result.
    """

    size: int
    taps: int
    stride: int
    first: int
    out: int

    @property
    def kernel(self) -> int:
        """Taps of the convolution."""
        return -(-self.taps // self.stride)

    @property
    def natural(self) -> int:
        """Places that the pixels add to, and those of the result behind them."""
        return max(self.first + self.out, (self.size - 1) * self.stride + self.taps)

    @property
    def blocks(self) -> range:
        """Blocks of `stride` places that the result lies in."""
        return range(self.first // self.stride, (self.first + self.out - 1) // self.stride + 1)

    @property
    def padding(self) -> Pair:
        """Zeros before and after the input; where negative, what nothing reads."""
        last = self.blocks[-1] - (self.size - 1)
        return self.kernel - 1 - self.blocks[0], last

    @property
    def kept(self) -> range:
        """Places of the input that are read."""
        before, after = self.padding
        return range(max(0, -before), self.size - max(0, -after))

    @property
    def cut(self) -> range:
        """Places of all blocks that are the result."""
        start = self.first - self.stride * self.blocks[0]
        return range(start, start + self.out)

    def first_of(self, padding: int) -> int:
        """Return where the result begins in the blocks, where as many zeros are before the input.

        Args:
            padding: At least that of the line.
        """
        return self.first - self.stride * (self.kernel - 1 - padding)


def reach(kernel: int, dilation: int) -> int:
    """Return how many places a kernel spans."""
    return dilation * (kernel - 1) + 1


def phases(weight: NDArray[Any], stride: Pair, dilation: Pair, groups: int) -> NDArray[Any]:
    """Return the weights of the convolution, 0 where there are none by structure.

    Args:
        weight: [in, out of a group, kernel height, kernel width], in any type.
        stride: See `Transposed`.
        dilation: See `Transposed`.
        groups: See `Transposed`.

    Returns:
        [groups, out of a group, block height, block width, in of a group, *kernel].
    """
    spans = [reach(k, d) for k, d in zip(weight.shape[2:], dilation, strict=True)]
    kernel = [-(-span // s) for span, s in zip(spans, stride, strict=True)]
    (down, right), (rows, columns) = stride, kernel
    full = np.zeros((*weight.shape[:2], rows * down, columns * right), weight.dtype)
    full[:, :, : spans[0] : dilation[0], : spans[1] : dilation[1]] = weight
    split = full.reshape(groups, -1, weight.shape[1], rows, down, columns, right)
    return split[:, :, :, ::-1, :, ::-1].transpose(0, 2, 4, 6, 1, 3, 5)
