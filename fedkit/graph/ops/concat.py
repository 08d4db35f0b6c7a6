"""Values one behind the other: along channels or features, or along rows or columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedkit.graph import ir
from fedkit.graph.layouts import map_axis
from fedkit.graph.operands import ConstantOperand, activation, constant, rank_of, require
from fedkit.graph.ops.spread import spread
from fedkit.graph.spec import (
    Aten,
    ModelReader,
    Onnx,
    OnnxNode,
    Random,
    Spec,
    a_map,
    any_shape,
    graph_of,
)
from fedkit.graph.tokens import LAST_TO_CHANNELS, channels_as_last, last_as_channels

Line = Literal["rows", "columns"]
AXES: Mapping[Line, int] = {"rows": 1, "columns": 2}
"""What a map is joined along -> its axis in the graph."""


@dataclass(frozen=True)
class Along(ir.Attributes):
    """What maps are joined along; of channels and features `concat` tells."""

    axis: Line


def along_of(op: ir.Op) -> Line:
    """Return what an op joins along."""
    assert isinstance(op.attributes, Along)  # the verifier's rule
    return op.attributes.axis


def axis_of(op: ir.Op) -> int:
    """Return the axis of the graph that an op joins along."""
    return -1 if op.attributes is None else AXES[along_of(op)]


def _concat(op: ir.Op, graph: ir.Graph, *parts: ir.FloatArray) -> ir.FloatArray:
    examples = max(map(len, parts))  # what all examples have is one
    whole = [np.broadcast_to(part, (examples, *part.shape[1:])) for part in parts]
    return np.concatenate(whole, axis_of(op))


def _shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    shapes, axis = [graph.tensors[name].shape for name in op.inputs], axis_of(op)
    whole = list(shapes[0])
    whole[axis] = sum(shape[axis] for shape in shapes)
    return tuple(whole)


def _operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    axis, wanted = axis_of(op), []
    for shape in shapes[1:]:
        like = list(shapes[0])
        like[axis] = shape[axis] if len(shape) == len(like) else like[axis]
        wanted.append(tuple(like))
    return wanted


def _example(random: Random) -> ir.Graph:
    shape, count = any_shape(random), int(random.integers(1, 4))
    end = (*shape[:-1], shape[-1] * count)
    return graph_of((shape, end), (), ir.Op("concat", ("x",) * count, ("y",)))


def _example_along(random: Random) -> ir.Graph:
    """Join a map, and maps that are pooled out of it, so that the parts differ in size."""
    line: Line = "rows" if random.random() < 0.5 else "columns"
    axis, (_, *sizes) = AXES[line], a_map(random)
    kernel = [1, 1]
    kernel[axis - 1] = int(random.integers(1, sizes[axis - 1] + 1))
    window = ir.Window((kernel[0], kernel[1]))
    part = (1, *window.output(sizes[0], sizes[1]), sizes[2])
    names = [("x", "p", "x")[int(n)] for n in random.permutation(3)[: random.integers(2, 4)]]
    end = [1, *sizes]
    end[axis] = sum((sizes[axis - 1] if name == "x" else part[axis]) for name in names)
    pool = ir.Op("max_pool2d", ("x",), ("p",), window)
    join = ir.Op("concat_along", tuple(names), ("y",), attributes=Along(line))
    return graph_of(((1, *sizes), part, tuple(end)), (), pool, join)


def _read(reader: ModelReader, node: Any, parts: Sequence[Any], dim: int) -> ir.Tensor:
    axis = map_axis(dim, rank_of(reader, node))
    require(axis != 0, f"a concat over dimension {dim}, that of the examples; each stays by itself")
    if reader.trains:
        parts = _as_values(reader, node, parts)
    constants = [part for part in parts if not isinstance(part, ir.Tensor)]
    if constants and len(parts) == len(constants) + 1 and rank_of(reader, node) > 2:
        return _beside_constants(reader, node, parts, axis)
    tensors = [activation(part) for part in parts]
    if axis == 1:
        return reader.op("concat", node, tensors)
    if len(tensors) == 1:
        return tensors[0]
    along = Along("rows" if axis == 2 else "columns")
    return reader.op("concat_along", node, tensors, attributes=along)


def _as_values(reader: ModelReader, node: Any, parts: Sequence[Any]) -> list[Any]:
    """Return parts of a model that trains, of which all are values then."""
    rank = rank_of(reader, node)
    return [
        part if isinstance(part, ir.Tensor) else _spread(reader, node, part, rank, f".part{n}")
        for n, part in enumerate(parts)
    ]


def _spread(reader: ModelReader, node: Any, part: Any, rank: int, suffix: str) -> ir.Tensor:
    if reader.learns(part):
        raise ConstantOperand("a part is computed from parameters, or is one for a single example")
    return spread(reader, node, _of_one(constant(part)), rank, suffix)


def _beside_constants(reader: ModelReader, node: Any, parts: Sequence[Any], axis: int) -> ir.Tensor:
    """Join a value and constants, as a token of a class: add these to zeros around the value."""
    place = next(n for n, part in enumerate(parts) if isinstance(part, ir.Tensor))
    constants = {n: part for n, part in enumerate(parts) if n != place}
    rank, of_graph = rank_of(reader, node), {1: 3, 2: 1, 3: 2}[axis]
    x = parts[place]
    laid = {n: ir.to_graph_layout(_of_one(constant(each))) for n, each in constants.items()}
    if of_graph == 3:
        axes = (0, *LAST_TO_CHANNELS[rank])
        x, of_graph = last_as_channels(reader, node, x), axes.index(3)
        laid = {n: each.transpose(axes) for n, each in laid.items()}
    whole = [laid.get(n, np.zeros(x.shape)) for n in range(len(parts))]
    sizes = [each.shape[of_graph] for each in whole]
    require(
        all(
            np.delete(each.shape, of_graph).tolist() == np.delete(x.shape, of_graph).tolist()
            for each in whole
        ),
        f"a concat of shapes {[np.shape(part) for part in constants.values()]} with others",
    )
    joined = np.concatenate(whole, of_graph)
    before, after = sum(sizes[:place]), sum(sizes[place + 1 :])
    sides = (before, after, 0, 0) if of_graph == 1 else (0, 0, before, after)
    room = reader.op("pad", node, [x], joined.shape, ir.Window(padding=sides), ".room")
    operand = reader.constant(node, "constants", joined)
    if {1: 3, 2: 1, 3: 2}[axis] != 3:
        return reader.op("add", node, [room, operand])
    made = reader.op("add", node, [room, operand], joined.shape, suffix=".joined")
    return channels_as_last(reader, node, made)


def _of_one(value: ir.Array) -> ir.Array:
    """Return a constant of one example, of which all examples must have the same."""
    same = bool((value == value[:1]).all())
    require(same, "a concat with a constant that is another for each example")
    return value[:1]


def _read_aten(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    return _read(reader, node, a["tensors"], a["dim"])


def _read_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    return _read(reader, node, node.inputs, node.attribute("axis", 1))


_ATEN: Mapping[str, Aten] = dict.fromkeys(
    ("aten.cat.default", "aten.concat.default", "aten.concatenate.default"), _read_aten
)
_ONNX: Mapping[str, Onnx] = {"Concat": _read_onnx}

SPECS = (
    Spec(
        "concat",
        "concat of channels",
        _concat,
        _example,
        variadic=True,
        shape=_shape,
        operands=_operands,
        scale="kept",
        aten=_ATEN,
        onnx=_ONNX,
    ),
    Spec(
        "concat_along",
        "concat of rows or columns",
        _concat,
        _example_along,
        activations=2,
        variadic=True,
        shape=_shape,
        operands=_operands,
        reads_map=True,
        scale="kept",
        attributes=Along,
        aten=_ATEN,
        onnx=_ONNX,
    ),
)
