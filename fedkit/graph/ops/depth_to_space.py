"""Channels as places, and places as channels: PixelShuffle and its reverse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fedkit.graph import ir, sliding
from fedkit.graph.operands import activation, require
from fedkit.graph.pixel_blocks import Blocks, blocks_of, spread, spread_shape
from fedkit.graph.places import take
from fedkit.graph.spec import Aten, ModelReader, Onnx, OnnxNode, Random, Spec, a_map, graph_of


def _spread(op: ir.Op, graph: ir.Graph, x: ir.FloatArray) -> ir.FloatArray:
    return spread(x, blocks_of(op))


def _shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    return spread_shape(graph.tensors[op.inputs[0]].shape, blocks_of(op))


def _rules(graph: ir.Graph, op: ir.Op) -> Iterator[str]:
    blocks, channels = blocks_of(op), graph.tensors[op.inputs[0]].shape[-1]
    if min(blocks.height, blocks.width) < 1:
        yield "must have blocks of at least one pixel"
    elif channels % blocks.pixels:
        yield f"must read a multiple of {blocks.pixels} channels, one for each pixel of a block"


def _example(random: Random) -> ir.Graph:
    height, width = (int(size) for size in random.integers(1, 4, 2))
    if random.random() < 0.4:
        width = height = 2
    blocks = Blocks(height, width, bool(random.random() < 0.5))
    _, rows, columns, channels = a_map(random)
    shape = (1, rows, columns, channels * blocks.pixels)
    op = ir.Op("depth_to_space", ("x",), ("y",), attributes=blocks)
    return graph_of((shape, spread_shape(shape, blocks)), (), op)


def to_space(
    reader: ModelReader, node: Any, x: ir.Tensor, blocks: Blocks, suffix: str = ""
) -> ir.Tensor:
    """Add what makes a block of pixels of each; nothing if that is the pixel itself.

    Raises:
        Unsupported: The channels are no multiple of a block.
    """
    if blocks.pixels == 1:
        return x
    fits = min(blocks.height, blocks.width) >= 1 and x.shape[3] % blocks.pixels == 0
    require(fits, f"{x.shape[3]} channels as blocks of {blocks.height}x{blocks.width} pixels")
    shape = spread_shape(x.shape, blocks)
    return reader.op("depth_to_space", node, [x], shape, suffix=suffix, attributes=blocks)


def _to_depth(
    reader: ModelReader, node: Any, x: ir.Tensor, block: int, by_channel: bool
) -> ir.Tensor:
    """Add what makes channels of each block: the maps of its places, one after the other."""
    _, height, width, channels = x.shape
    fits = block >= 1 and height % block == 0 == width % block
    require(fits, f"blocks of {block}x{block} pixels of a map of {height}x{width}")
    if block == 1:
        return x
    parts = [
        take(reader, node, x, {2: range(i, height, block), 3: range(j, width, block)}, f".{i}.{j}")
        for i, j in np.ndindex(block, block)
    ]
    shape = (1, height // block, width // block, channels * block**2)
    joined = reader.op("concat", node, parts, shape, suffix=".joined" if by_channel else "")
    order = np.arange(shape[3]).reshape(block**2, channels)
    return take(reader, node, joined, {1: order.T.ravel()}) if by_channel else joined


def _read_shuffle(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    block = a["upscale_factor"]
    return to_space(reader, node, activation(a["self"], 4), Blocks(block, block, True))


def _read_unshuffle(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    return _to_depth(reader, node, activation(a["self"], 4), a["downscale_factor"], True)


def _read_to_space(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    block, by_channel = _block_of(node)
    blocks = Blocks(block, block, by_channel)
    return to_space(reader, node, activation(node.operand(0), 4), blocks)


def _read_to_depth(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    return _to_depth(reader, node, activation(node.operand(0), 4), *_block_of(node))


def _block_of(node: OnnxNode) -> tuple[int, bool]:
    """Return the size of a node's blocks, and whether they lie channel by channel."""
    mode, block = node.attribute("mode", "DCR"), int(node.attribute("blocksize", 0))
    require(mode in ("DCR", "CRD"), f"channels as places in mode {mode}; DCR and CRD can be")
    return block, mode == "CRD"


_ATEN: dict[str, Aten] = {
    "aten.pixel_shuffle.default": sliding.maps(_read_shuffle),
    "aten.pixel_unshuffle.default": sliding.maps(_read_unshuffle),
}
_ONNX: dict[str, Onnx] = {"DepthToSpace": _read_to_space, "SpaceToDepth": _read_to_depth}

SPECS = (
    Spec(
        "depth_to_space",
        "pixel shuffle",
        _spread,
        _example,
        shape=_shape,
        rules=_rules,
        reads_map=True,
        scale="kept",
        attributes=Blocks,
        aten=_ATEN,
        onnx=_ONNX,
    ),
)
