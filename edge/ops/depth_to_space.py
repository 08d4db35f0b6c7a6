"""Channels as places in integers: a move, which keeps the scale."""

from __future__ import annotations

import numpy as np

from edge.define.rounding import Policy
from edge.ops.builders import CCompiler, OnnxFile, TfliteFile
from edge.ops.integer_spec import IntegerSpec, Link, Operands
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from fedkit.graph.pixel_blocks import Blocks, blocks_of, spread


def _spread(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    return np.asarray(spread(operands[0], blocks_of(op)), np.int64)


def _links(graph: ir.Graph, op: ir.Op) -> list[Link]:
    """Link a channel with the channels that hold its pixels: all of them stay, or none."""
    blocks, inputs = blocks_of(op), np.arange(graph.tensors[op.inputs[0]].shape[-1])
    channels = len(inputs) // blocks.pixels
    outputs = inputs // blocks.pixels if blocks.by_channel else inputs % channels
    return [Link(op.inputs[0], inputs, outputs)]


def _tflite(file: TfliteFile, op: ir.Op) -> None:
    blocks, x = blocks_of(op), file.graph.tensors[op.inputs[0]]
    if blocks.height == blocks.width and not blocks.by_channel:
        options = "DepthToSpaceOptions"
        file.operator("DEPTH_TO_SPACE", [x.name], op.output, options, blockSize=blocks.width)
        return
    _, height, width, _ = x.shape
    parts, axes = _split(blocks, file.graph.tensors[op.output].shape[-1])
    before = (height, width, *parts)
    turned = tuple(before[axis] for axis in axes)
    names = [f"{op.output}.{what}" for what in ("split", "turned")]
    for name, shape in zip(names, (before, turned), strict=True):
        file.tensor(ir.Tensor(name, shape, x.dtype, None, x.quantization))
    file.reshape(x.name, names[0], before)
    order = file.constant(f"{names[1]}.axes", list(axes))
    file.operator("TRANSPOSE", [names[0], order], names[1], "TransposeOptions")
    file.reshape(names[1], op.output, file.graph.tensors[op.output].shape)


def _split(blocks: Blocks, channels: int) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Return the channels of [h, w, block * c] as three axes, and the order that joins a block."""
    if blocks.by_channel:
        return (channels, blocks.height, blocks.width), (0, 3, 1, 4, 2)
    return (blocks.height, blocks.width, channels), (0, 2, 1, 3, 4)


def _onnx(file: OnnxFile, op: ir.Op) -> None:
    blocks, (name,) = blocks_of(op), op.inputs
    if blocks.height == blocks.width:
        mode = "CRD" if blocks.by_channel else "DCR"
        file.node("DepthToSpace", [name], op.output, blocksize=blocks.width, mode=mode)
        return
    _, height, width, _ = file.graph.tensors[name].shape
    parts, axes = _split(blocks, file.graph.tensors[op.output].shape[-1])
    names = [f"{op.output}.{what}" for what in ("split", "turned")]
    file.reshape(name, names[0], (*parts, height, width))
    # [h, w, parts] there, [parts, h, w] here; the channels come first in the result.
    moved = [(axis + 3) % 5 for axis in axes]
    file.node("Transpose", [names[0]], names[1], perm=(moved[-1], *moved[:-1]))
    _, *plane, channels = file.graph.tensors[op.output].shape
    file.reshape(names[1], op.output, (1, channels, *plane))


def _c99(c: CCompiler, op: ir.Op) -> None:
    blocks, channels = blocks_of(op), c.graph.tensors[op.output].shape[-1]
    steps = (blocks.pixels, 1) if blocks.by_channel else (1, channels)
    struct = c.struct("ek_pixel_blocks", blocks.height, blocks.width, *steps)
    layouts = [c.layout(name) for name in (op.inputs[0], op.output)]
    places = c.place(op.inputs[0]), c.new(op.output)
    c.call("ek_depth_to_space", struct, *layouts, *places, source=op.source)


SPECS = (IntegerSpec("depth_to_space", _spread, _links, tflite=_tflite, onnx=_onnx, c99=_c99),)
