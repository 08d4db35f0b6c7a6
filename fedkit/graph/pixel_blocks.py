"""Channels that become places: each pixel of a map a block of pixels, of fewer channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fedkit.graph import ir


@dataclass(frozen=True)
class Blocks(ir.Attributes):
    """A pixel of height * width * c channels becomes height * width pixels of c.

    Attributes:
        height: Of a block, at least 1.
        width: Likewise.
        by_channel: Which channel becomes pixel (i, j) of channel k: (k * height + i) * width + j,
            as torch's PixelShuffle and ONNX's CRD have it; else (i * width + j) * c + k, as TFLite
            and ONNX's DCR do.
    """

    height: int
    width: int
    by_channel: bool

    @property
    def pixels(self) -> int:
        """How many a block has."""
        return self.height * self.width


def blocks_of(op: ir.Op) -> Blocks:
    """Return the blocks of an op that has some."""
    assert isinstance(op.attributes, Blocks)  # the verifier's rule
    return op.attributes


def spread(x: NDArray[Any], blocks: Blocks) -> NDArray[Any]:
    """Return [n, h, w, block * c] as [n, h * block height, w * block width, c], in any type."""
    n, height, width, channels = x.shape
    of_block, left = (blocks.height, blocks.width), channels // blocks.pixels
    if blocks.by_channel:
        parts = x.reshape(n, height, width, left, *of_block).transpose(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape(n, height, width, *of_block, left).transpose(0, 1, 3, 2, 4, 5)
    return parts.reshape(n, height * blocks.height, width * blocks.width, left)


def spread_shape(shape: ir.Shape, blocks: Blocks) -> ir.Shape:
    """Return the shape of what `spread` makes of a map."""
    _, height, width, channels = shape
    return (1, height * blocks.height, width * blocks.width, channels // max(1, blocks.pixels))
