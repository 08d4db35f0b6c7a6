"""Resizes: to the nearest, which take places, and linear ones.

A training plan has a linear resize as it is. An export has what that is made of: places beyond the
border, which repeat it, a convolution of each channel whose kernels are the distances, and blocks
of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.graph import ir, sliding
from fedkit.graph.layouts import SERIES
from fedkit.graph.linear import Coordinates, ResizedAxis, between
from fedkit.graph.nearest import nearest_places, require_known
from fedkit.graph.operands import activation, rank_of, require, require_small
from fedkit.graph.ops.depth_to_space import to_space
from fedkit.graph.pixel_blocks import Blocks
from fedkit.graph.places import moved, take
from fedkit.graph.spec import Aten, ModelReader, Onnx, OnnxNode, Random, Spec, a_map, graph_of

_AT_ONCE = 256
"""Weights of a channel up to which an export resizes both axes at once, rounded to int8 once."""

_MOST = 4096
"""Weights of a channel that an export may have for an axis."""


def coordinates_of(op: ir.Op) -> Coordinates:
    """Return the coordinates of an op that resizes."""
    assert isinstance(op.attributes, Coordinates)  # the verifier's rule
    return op.attributes


def _linear(op: ir.Op, graph: ir.Graph, x: ir.FloatArray) -> ir.FloatArray:
    how = coordinates_of(op)
    rows, columns = between(how.rows, x.shape[1]), between(how.columns, x.shape[2])
    return np.asarray(np.einsum("rh,nhwc,kw->nrkc", rows, x, columns, optimize=True))


def _shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    how = coordinates_of(op)
    return (1, len(how.rows), len(how.columns), graph.tensors[op.inputs[0]].shape[-1])


def _rules(graph: ir.Graph, op: ir.Op) -> Iterator[str]:
    how, (_, height, width, _) = coordinates_of(op), graph.tensors[op.inputs[0]].shape
    for size, each in ((height, how.rows), (width, how.columns)):
        if not all(0 <= place <= size - 1 for place in each):
            yield f"must lie between the places 0 and {size - 1}"


def _example(random: Random) -> ir.Graph:
    shape = a_map(random)
    rows, columns = (
        tuple(random.uniform(0, size - 1, int(random.integers(1, 9))).tolist())
        for size in shape[1:3]
    )
    op = ir.Op("resize_linear", ("x",), ("y",), attributes=Coordinates(rows, columns))
    return graph_of((shape, (1, len(rows), len(columns), shape[3])), (), op)


# Linear


def _read_linear(
    reader: ModelReader, node: Any, x: ir.Tensor, rows: ResizedAxis, columns: ResizedAxis
) -> ir.Tensor:
    """Add a linear resize, or what an export has of it."""
    shape = (1, rows.out, columns.out, x.shape[3])
    require_small(shape)
    if reader.trains:
        how = Coordinates(rows.coordinates, columns.coordinates)
        return reader.op("resize_linear", node, [x], shape, attributes=how)
    rows, columns = (_same(1, each.out) if each.size == 1 else each for each in (rows, columns))
    if _count(rows) * _count(columns) <= _AT_ONCE:
        return _made_of(reader, node, x, rows, columns)
    for axis in (rows, columns):
        require(
            _count(axis) <= _MOST,
            f"a linear resize of {axis.size} places to {axis.out}, at steps of {axis.step}: "
            f"{_count(axis)} weights for each channel, {_MOST} can be; take a whole factor and "
            "align_corners=False, or mode nearest",
        )
    made = _made_of(reader, node, x, rows, _same(columns.size, columns.size), suffix=".rows")
    return _made_of(reader, node, made, _same(rows.out, rows.out), columns)


def _count(axis: ResizedAxis) -> int:
    return axis.phases * axis.kernel


def _same(size: int, out: int) -> ResizedAxis:
    """Return the steps that leave an axis as it is, and repeat its end."""
    return ResizedAxis(size, out, Fraction(0), Fraction(1))


def _made_of(
    reader: ModelReader,
    node: Any,
    x: ir.Tensor,
    rows: ResizedAxis,
    columns: ResizedAxis,
    suffix: str = "",
) -> ir.Tensor:
    if _count(rows) * _count(columns) == 1:
        strided = {2: rows.places[:: rows.stride], 3: columns.places[:: columns.stride]}
        return take(reader, node, x, strided, suffix=suffix)
    seen = take(reader, node, x, {2: rows.places, 3: columns.places}, suffix=f"{suffix}.seen")
    made = _convolution(reader, node, seen, rows, columns, f"{suffix}.maps")
    blocks = Blocks(rows.phases, columns.phases, by_channel=True)
    made = to_space(reader, node, made, blocks, suffix=f"{suffix}.blocks")
    return take(reader, node, made, {2: range(rows.out), 3: range(columns.out)}, suffix=suffix)


def _convolution(
    reader: ModelReader,
    node: Any,
    x: ir.Tensor,
    rows: ResizedAxis,
    columns: ResizedAxis,
    suffix: str,
) -> ir.Tensor:
    window = ir.Window((rows.kernel, columns.kernel), (rows.stride, columns.stride))
    of_channel = np.einsum("ph,qw->hwpq", rows.weights(), columns.weights())
    require_small((*window.kernel, of_channel[0, 0].size * x.shape[3]))
    weight = np.tile(of_channel.reshape(*window.kernel, -1), (1, 1, x.shape[3]))[None]
    constants = [
        reader.constant(node, "weight", weight),
        reader.constant(node, "bias", np.zeros(weight.shape[3])),
    ]
    shape = (1, *window.output(*x.shape[1:3]), weight.shape[3])
    return reader.op("depthwise_conv2d", node, [x, *constants], shape, window, suffix=suffix)


def _steps(size: int, out: int, align: bool, scale: Fraction | None) -> ResizedAxis:
    """Return how torch steps, and ONNX where it counts as torch does."""
    if align:
        one = size == 1 or out == 1  # whatever the step, all is the first place
        return ResizedAxis(
            size, out, Fraction(0), Fraction(1) if one else Fraction(size - 1, out - 1)
        )
    step = Fraction(size, out) if scale is None else 1 / scale
    return ResizedAxis(size, out, step / 2 - Fraction(1, 2), step)


_LARGEST = 1024
"""Denominator of a scale that is taken for a ratio, and not for a number rounded to float32."""


def _whole(scale: float) -> Fraction:
    """Return the ratio of small numbers that a scale is, if it is one in float32."""
    found = Fraction(scale).limit_denominator(_LARGEST)
    require(found > 0, f"a resize by {scale}")
    return found if np.float32(found) == np.float32(scale) else Fraction(scale)


# Of torch


def _read_aten(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x, rank = activation(a.get("input", a.get("self")), 4), rank_of(reader, node)
    given = a.get("scale_factors") or [a.get(name) for name in _SCALES if name in a]
    scales = [_whole(each) if each else None for each in given] or [None] * (rank - 2)
    scales = [Fraction(1), *scales] if rank == SERIES else scales
    sizes = zip(x.shape[1:3], reader.shape_of(node)[1:3], scales, strict=True)
    rows, columns = (
        # Where a size stays, torch copies, whatever the scale that it was told.
        _steps(size, out, a["align_corners"], None if size == out else scale)
        for size, out, scale in sizes
    )
    return _read_linear(reader, node, x, rows, columns)


_SCALES = ("scales_h", "scales_w", "scales")

# Of ONNX


def _read_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    """Read a Resize or Upsample."""
    mode, is_old = node.attribute("mode", "nearest"), node.opset < _RESIZES
    known = mode in ("nearest", "linear")
    require(known, f"a resize by {mode} interpolation; nearest and linear can be")
    coordinates = node.attribute("coordinate_transformation_mode", "half_pixel")
    coordinates = "asymmetric" if is_old else coordinates
    policy = node.attribute("keep_aspect_ratio_policy", "stretch")
    require(policy == "stretch", f"a resize that keeps the aspect ratio ({policy})")
    rank, out = rank_of(reader, node), node.shapes[0]
    axes = [axis % rank for axis in node.attribute("axes", range(rank))]
    scales = node.setting("scales", 1 if is_old else 2) or ()
    require(len(scales) in (0, len(axes)), f"{len(scales)} scales for the axes {axes}")
    given = dict(zip(axes, map(float, scales), strict=False))
    shrinks = is_old and any(scale < 1 for scale in given.values())
    require(not shrinks, f"a resize that shrinks, which opset {_RESIZES} first defines")
    require_small(reader.shape_of(node))
    if mode == "linear":
        return _read_linear_onnx(reader, node, coordinates, given)
    nearest = "floor" if is_old else node.attribute("nearest_mode", "round_prefer_floor")
    require_known(coordinates, nearest)

    def places(axis: int, size: int) -> NDArray[Any]:
        if axis == 0:
            return np.arange(2 * out[0])  # of two examples for one
        return nearest_places(
            coordinates, nearest, size, out[axis], given.get(axis, out[axis] / size)
        )

    return moved(reader, node, places)


def _read_linear_onnx(
    reader: ModelReader, node: OnnxNode, coordinates: str, given: Mapping[int, float]
) -> ir.Tensor:
    require(not node.attribute("antialias", 0), "a resize with antialias")
    require(coordinates in _COUNTS, f"a linear resize by the coordinates {coordinates}")
    x, rank = activation(node.operand(0), 4), rank_of(reader, node)
    of_map = {axis + 1 if rank == SERIES else axis: scale for axis, scale in given.items()}
    others = [of_map.pop(axis, 1.0) for axis in ((1, 2) if rank == SERIES else (0, 1))]
    out = reader.shape_of(node)
    is_of_map = others == [1.0, 1.0] and out[3] == x.shape[3]
    require(is_of_map, "a linear resize of examples or channels; height and width can be")
    rows, columns = (
        _COUNTS[coordinates](x.shape[axis - 1], out[axis - 1], _told(of_map, axis))
        for axis in (2, 3)
    )
    return _read_linear(reader, node, x, rows, columns)


def _told(given: Mapping[int, float], axis: int) -> Fraction | None:
    return _whole(given[axis]) if axis in given else None


def _asymmetric(size: int, out: int, scale: Fraction | None) -> ResizedAxis:
    return ResizedAxis(size, out, Fraction(0), Fraction(size, out) if scale is None else 1 / scale)


def _corners(size: int, out: int, scale: Fraction | None) -> ResizedAxis:
    is_whole = scale is None or scale * size == out
    require(is_whole, f"corners that are aligned in a resize of {size} by {scale}, not to {out}")
    return _steps(size, out, True, None)


def _symmetric(size: int, out: int, scale: Fraction | None) -> ResizedAxis:
    found = _steps(size, out, False, scale)
    cut = Fraction(size, 2) * (1 - out * found.step / size)
    return ResizedAxis(size, out, found.start + cut, found.step)


def _of_torch(size: int, out: int, scale: Fraction | None) -> ResizedAxis:
    found = _steps(size, out, False, scale)
    return found if out > 1 else ResizedAxis(size, out, Fraction(0), found.step)


_COUNTS: Mapping[str, Callable[[int, int, Fraction | None], ResizedAxis]] = {
    "half_pixel": lambda size, out, scale: _steps(size, out, False, scale),
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": _of_torch,
    "align_corners": _corners,
    "asymmetric": _asymmetric,
}
"""Takes the sizes of what is read and of the result, and the scale if that is told."""

_RESIZES = 11
"""Opset from which a resize says how it counts."""

RESIZES_ONNX: dict[str, Onnx] = dict.fromkeys(("Resize", "Upsample"), _read_onnx)

_READ_MAPS = sliding.maps(_read_aten)
_ATEN: dict[str, Aten] = {
    "aten.upsample_bilinear2d.default": _READ_MAPS,
    "aten.upsample_bilinear2d.vec": _READ_MAPS,
    "aten.upsample_linear1d.default": _read_aten,
    "aten.upsample_linear1d.vec": _read_aten,
}

SPECS = (
    Spec(
        "resize_linear",
        "linear resize",
        _linear,
        _example,
        shape=_shape,
        rules=_rules,
        reads_map=True,
        attributes=Coordinates,
        aten=_ATEN,
        onnx=RESIZES_ONNX,
        only_trains=True,
    ),
)
