"""Transposed convolutions, which a training plan has as they are.

An export has what each is made of: a convolution of stride 1, blocks of pixels from its channels,
and a cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedkit.graph import ir, sliding
from fedkit.graph.layouts import as_map
from fedkit.graph.operands import (
    activation,
    constant,
    integers,
    rank_of,
    require,
    require_small,
    vector,
)
from fedkit.graph.operands import weights as weights_of
from fedkit.graph.ops.depth_to_space import to_space
from fedkit.graph.phases import Pair, Transposed, TransposedAxis, phases, reach
from fedkit.graph.pixel_blocks import Blocks
from fedkit.graph.places import take
from fedkit.graph.spec import Aten, ModelReader, Onnx, OnnxNode, Random, Spec, graph_of

FloatArray = ir.FloatArray


def _how(op: ir.Op) -> Transposed:
    assert isinstance(op.attributes, Transposed)  # the verifier's rule
    return op.attributes


def _transposed(
    op: ir.Op, graph: ir.Graph, x: FloatArray, w: FloatArray, b: FloatArray
) -> FloatArray:
    """Add what each pixel gives; weights are [in, out of a group, *kernel]."""
    how, (n, height, width, _) = _how(op), x.shape
    sizes = [
        max(first + size, (pixels - 1) * stride + reach(taps, dilation))
        for first, size, pixels, stride, taps, dilation in zip(
            how.first, how.size, (height, width), how.stride, w.shape[2:], how.dilation, strict=True
        )
    ]
    groups = [np.split(each, how.groups, axis) for each, axis in ((x, 3), (w, 0))]
    full = np.zeros((n, *sizes, len(b)), np.float32)
    for i, j in np.ndindex(*w.shape[2:]):
        given = [part @ kernel[:, :, i, j] for part, kernel in zip(*groups, strict=True)]
        top, left = i * how.dilation[0], j * how.dilation[1]
        rows = slice(top, top + (height - 1) * how.stride[0] + 1, how.stride[0])
        columns = slice(left, left + (width - 1) * how.stride[1] + 1, how.stride[1])
        full[:, rows, columns] += np.concatenate(given, 3)
    (top, left), (rows_out, columns_out) = how.first, how.size
    return full[:, top : top + rows_out, left : left + columns_out] + b


def _shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    return (1, *_how(op).size, graph.tensors[op.inputs[2]].shape[0])


def _operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    kernel, out, groups = shapes[1][2:4], *shapes[2][:1], max(1, _how(op).groups)
    return [(shapes[0][-1], out // groups, *kernel), (out,)]


def _rules(graph: ir.Graph, op: ir.Op) -> Iterator[str]:
    how = _how(op)
    if min(*how.stride, *how.dilation, *how.size, how.groups) < 1 or min(how.first) < 0:
        yield "must have strides, dilations, sizes and groups of at least 1, and cut nothing off"
    elif any(graph.tensors[name].shape[-1] % how.groups for name in (op.inputs[0], op.output)):
        yield f"must have channels in {how.groups} equal groups"


def _example(random: Random) -> ir.Graph:
    groups, of_group, outs, height, width = (int(size) for size in random.integers(1, 4, 5))
    (down, right, *kernel), (top, left) = (
        random.integers(1, 4, 4).tolist(),
        random.integers(0, 2, 2),
    )
    natural = [
        (s - 1) * t + k for s, t, k in zip((height, width), (down, right), kernel, strict=True)
    ]
    top, left = min(int(top), natural[0] - 1), min(int(left), natural[1] - 1)
    size = natural[0] - top, natural[1] - left
    how = Transposed((down, right), (1, 1), (top, left), size, groups)
    shape, out = (1, height, width, groups * of_group), groups * outs
    constants = random.standard_normal((shape[3], outs, *kernel)), random.standard_normal(out)
    op = ir.Op("conv_transpose2d", ("x", "c0", "c1"), ("y",), attributes=how)
    return graph_of((shape, (1, *size, out)), constants, op)


# Readers


def _read(
    reader: ModelReader, node: Any, x: ir.Tensor, weight: Any, bias: Any, how: Transposed
) -> ir.Tensor:
    """Add a transposed convolution, or what an export has of it."""
    values = constant(weight)
    values = values.reshape(as_map(values.shape))
    spans = [reach(k, d) for k, d in zip(values.shape[2:], how.dilation, strict=True)]
    given = zip(x.shape[1:3], spans, how.stride, how.first, how.size, strict=True)
    lines = [TransposedAxis(*each) for each in given]
    require_small((*values.shape[:2], *(line.kernel * line.stride for line in lines)))
    require_small((values.shape[1] * how.groups, *(line.natural for line in lines)))
    shift = np.zeros(values.shape[1] * how.groups) if bias is None else constant(bias, "biases")
    if reader.trains:
        constants = [
            reader.constant(node, "weight", values, weight),
            reader.constant(node, "bias", shift, bias),
        ]
        return reader.op("conv_transpose2d", node, [x, *constants], attributes=how)
    return _made_of(reader, node, x, values, shift, how, lines)


def _made_of(
    reader: ModelReader,
    node: Any,
    x: ir.Tensor,
    weight: ir.Array,
    bias: ir.Array,
    how: Transposed,
    lines: Sequence[TransposedAxis],
) -> ir.Tensor:
    is_depthwise = how.groups == x.shape[3] > 1
    require(
        how.groups == 1 or is_depthwise,
        f"a transposed convolution of {how.groups} groups; 1 or one per channel can be",
    )
    blocks = Blocks(*how.stride, by_channel=is_depthwise)
    kept = take(reader, node, x, {2: lines[0].kept, 3: lines[1].kept}, suffix=".read")
    split = phases(weight, how.stride, how.dilation, how.groups)
    made = _convolution(reader, node, kept, split, bias, lines, is_depthwise)
    made = to_space(reader, node, made, blocks, suffix=".blocks")
    return take(reader, node, made, {2: lines[0].cut, 3: lines[1].cut})


def _convolution(
    reader: ModelReader,
    node: Any,
    x: ir.Tensor,
    split: ir.Array,
    bias: ir.Array,
    lines: Sequence[TransposedAxis],
    is_depthwise: bool,
) -> ir.Tensor:
    """Add the convolution; its channels are in the order of the blocks that are made of them."""
    _, _, *block, of_group, rows, columns = split.shape
    pads = [max(0, side) for line in lines for side in line.padding]
    window = ir.Window((rows, columns), padding=(pads[0], pads[1], pads[2], pads[3]))
    pixels = math.prod(block)
    shift = np.repeat(bias, pixels) if is_depthwise else np.tile(bias, pixels)
    if is_depthwise:
        laid = split.reshape(-1, rows, columns).transpose(1, 2, 0)[None]
    else:
        laid = split[0].transpose(1, 2, 0, 4, 5, 3).reshape(-1, rows, columns, of_group)
    constants = [reader.constant(node, "weight", laid), reader.constant(node, "bias", shift)]
    shape = (1, *window.output(*x.shape[1:3]), len(shift))
    kind = "depthwise_conv2d" if is_depthwise else "conv2d"
    return reader.op(kind, node, [x, *constants], shape, window, suffix=".phases")


def _read_aten(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x = activation(a["input"], 4)
    first, stride, dilation = (sliding.pair(a[name]) for name in ("padding", "stride", "dilation"))
    _, *size, _ = reader.shape_of(node)
    how = Transposed(stride, dilation, first, (size[0], size[1]), a["groups"])
    return _read(reader, node, x, a["weight"], a["bias"], how)


def _read_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    x, rank = activation(node.operand(0), 4), rank_of(reader, node)
    weight, groups = weights_of(node, 1, rank), int(node.attribute("group", 1))
    own = weight.shape[2:]
    given = integers(node, "kernel_shape", rank - 2, 0)
    require(given in ((0,) * len(own), own), f"kernel_shape = {given}, but the weights are {own}")
    fits = groups >= 1 and len(weight) == x.shape[3] and len(weight) % groups == 0
    require(fits, f"weights {weight.shape} in {groups} group(s) for {x.shape[3]} channels")
    stride, dilation = (sliding.sizes(reader, node, name) for name in ("strides", "dilations"))
    _, *size, _ = reader.shape_of(node)
    spans = map(reach, as_map(weight.shape)[2:], dilation)
    natural = [
        (pixels - 1) * each + span
        for pixels, each, span in zip(x.shape[1:3], stride, spans, strict=True)
    ]
    first = _first(reader, node, natural, size)
    how = Transposed(stride, dilation, first, (size[0], size[1]), groups)
    return _read(reader, node, x, weight, vector(node, 2, weight.shape[1] * groups), how)


def _first(
    reader: ModelReader, node: OnnxNode, natural: Sequence[int], size: Sequence[int]
) -> Pair:
    """Return what a node cuts off before its result.

    Args:
        reader: What reads the file.
        node: The node.
        natural: Height and width of all that the pixels add to.
        size: Of the result.
    """
    how, count = node.attribute("auto_pad", "NOTSET"), rank_of(reader, node) - 2
    require(how in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"), f"auto_pad = {how}")
    more = (0, *integers(node, "output_padding", count, 0))[-2:]
    is_told = bool(node.attribute("output_shape", ()))
    if is_told or how.startswith("SAME"):
        known = is_told or not any(more)
        require(known, f"auto_pad = {how} with an output_padding, in which runtimes differ")
        total = [n + m - s for n, m, s in zip(natural, more, size, strict=True)]
        require(min(total) >= -1, f"a result of {tuple(size)}, far more than {tuple(natural)}")
        is_even = not any(each % 2 for each in total)
        known = is_even or node.opset >= _SAYS_WHERE
        require(known, f"an odd padding in all, which opset {_SAYS_WHERE} first puts in one place")
        top, left = (each // 2 if how == "SAME_UPPER" else each - each // 2 for each in total)
        require(min(top, left) >= 0, f"a result of {tuple(size)}, which begins before the first")
        return top, left
    top, left, bottom, right = sliding.pads(reader, node) if how == "NOTSET" else (0,) * 4
    require(min(top, left, bottom, right) >= 0, "negative pads; an output_padding can add")
    found = natural[0] + more[0] - top - bottom, natural[1] + more[1] - left - right
    require(found == tuple(size), f"a result of {tuple(size)}, not {found}")
    return top, left


_SAYS_WHERE = 11
"""Opset from which what is left of an odd padding has its place."""

_ATEN: dict[str, Aten] = {
    "aten.conv_transpose2d.input": sliding.maps(_read_aten),
    "aten.conv_transpose1d.default": sliding.series(_read_aten),
}
_ONNX: dict[str, Onnx] = {"ConvTranspose": _read_onnx}

SPECS = (
    Spec(
        "conv_transpose2d",
        "transposed convolution",
        _transposed,
        _example,
        constants=2,
        shape=_shape,
        operands=_operands,
        rules=_rules,
        reads_map=True,
        attributes=Transposed,
        aten=_ATEN,
        onnx=_ONNX,
        only_trains=True,
    ),
)
