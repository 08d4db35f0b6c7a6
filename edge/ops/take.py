"""What puts integers elsewhere along single axes, by lists of places; it keeps the scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from edge.define.rounding import Policy
from edge.ops.builders import CCompiler, OnnxFile, TfliteFile
from edge.ops.integer_spec import Flags, IntegerSpec, Link, Operands
from fedkit.core.errors import ExportError
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from fedkit.graph.ops.take import taken
from fedkit.graph.places import places_of, sizes_of

_MOST_IN_C = 2**16


def _take(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    return np.asarray(taken(operands[0], places_of(op)), np.int64)


def _links(graph: ir.Graph, op: ir.Op) -> list[Link]:
    outputs = np.arange(graph.tensors[op.output].shape[-1])
    channels = places_of(op).channels
    inputs = outputs if channels is None else np.array(channels, np.intp)
    return [Link(op.inputs[0], inputs, outputs)]


def _slimmed(op: ir.Op, inputs: Flags, outputs: Flags) -> ir.Op:
    """Number the channels that are left anew: what is taken of one that is gone is gone too."""
    places = places_of(op)
    if places.channels is None:
        return op
    left = (np.cumsum(inputs) - 1)[np.array(places.channels)[outputs]]
    return replace(op, attributes=replace(places, channels=tuple(left.tolist())))


# Targets


class _Steps(NamedTuple):
    """Places first, first + step, ... up to but without `end`."""

    first: int
    end: int
    step: int


def _steps(places: Sequence[int]) -> _Steps | None:
    """Return what gives places one after the other, or nothing; none are before others."""
    step = places[1] - places[0] if len(places) > 1 else 1
    found = range(places[0], places[-1] + 1, step) if step > 0 else range(0)
    return _Steps(places[0], places[-1] + 1, step) if list(found) == list(places) else None


def _axes(graph: ir.Graph, op: ir.Op) -> dict[int, Sequence[int]]:
    """Return axis of the graph -> its places; of a single one, if all stay where they are."""
    x, last = graph.tensors[op.inputs[0]].shape, len(graph.tensors[op.output].shape) - 1
    named = zip((1, 2, last), places_of(op).lists, strict=True)
    return {axis: each for axis, each in named if each is not None} or {last: range(x[-1])}


class _Part(NamedTuple):
    """Reads one tensor and writes another: in steps along axes, or else by a list along one."""

    x: str
    written: str
    steps: dict[int, _Steps]
    axis: int = 0
    places: Sequence[int] = ()

    def size(self, axis: int, before: int) -> int:
        """Return what the size of an axis becomes."""
        if axis in self.steps:
            return len(range(*self.steps[axis]))
        return len(self.places) if self.places and axis == self.axis else before


def _parts(graph: ir.Graph, op: ir.Op) -> Iterator[_Part]:
    """Yield what a take consists of; steps come first, as they leave less for what follows."""
    axes = _axes(graph, op)
    steps = {axis: found for axis, each in axes.items() if (found := _steps(each))}
    makes = [_Part("", "", steps)] if steps else []
    makes += [_Part("", "", {}, axis, each) for axis, each in axes.items() if axis not in steps]
    name = op.inputs[0]
    for number, part in enumerate(makes, start=1):
        written = op.output if number == len(makes) else f"{op.output}.part{number}"
        yield part._replace(x=name, written=written)
        name = written


def _tflite(file: TfliteFile, op: ir.Op) -> None:
    x = file.graph.tensors[op.inputs[0]]
    shape = x.shape
    for part in _parts(file.graph, op):
        before, shape = shape, tuple(part.size(axis, size) for axis, size in enumerate(shape))
        if part.written != op.output:
            file.tensor(ir.Tensor(part.written, shape, x.dtype, None, x.quantization))
        if part.steps:
            _strided_slice(file, part, before)
        else:
            places = file.constant(f"{part.written}.places", list(part.places))
            file.operator("GATHER", [part.x, places], part.written, "GatherOptions", axis=part.axis)


def _strided_slice(file: TfliteFile, part: _Part, shape: ir.Shape) -> None:
    whole = [part.steps.get(axis, _Steps(0, size, 1)) for axis, size in enumerate(shape)]
    named = zip(("begin", "end", "strides"), zip(*whole, strict=True), strict=True)
    operands = [file.constant(f"{part.written}.{what}", list(each)) for what, each in named]
    file.operator("STRIDED_SLICE", [part.x, *operands], part.written, "StridedSliceOptions")


def _onnx(file: OnnxFile, op: ir.Op) -> None:
    is_map = len(file.graph.tensors[op.output].shape) == 4
    of_file = {1: 2, 2: 3, 3: 1} if is_map else {1: 1}
    for part in _parts(file.graph, op):
        if part.steps:
            first, end, step = zip(*part.steps.values(), strict=True)
            axes = [of_file[axis] for axis in part.steps]
            named = {"starts": first, "ends": end, "axes": axes, "steps": step}
            operands = [
                file.constant(f"{part.written}.{what}", np.array(values, np.int64))
                for what, values in named.items()
            ]
            file.node("Slice", [part.x, *operands], part.written)
        else:
            places = file.constant(f"{part.written}.places", np.array(part.places, np.int64))
            file.node("Gather", [part.x, places], part.written, axis=of_file[part.axis])


def _c99(c: CCompiler, op: ir.Op) -> None:
    sizes = sizes_of(c.graph.tensors[op.inputs[0]].shape)
    if max(sizes) > _MOST_IN_C:
        raise ExportError(f"it takes of {max(sizes)} places; {_MOST_IN_C} of an axis can be")
    lists = [
        np.array(range(size) if each is None else each, np.uint16)
        for size, each in zip(sizes, places_of(op).lists, strict=True)
    ]
    columns = lists[1]
    is_run = bool((columns == columns[0] + np.arange(len(columns))).all())
    struct = c.struct("ek_places", *lists, int(is_run))
    layouts = [c.layout(name) for name in (op.inputs[0], op.output)]
    places = c.place(op.inputs[0]), c.new(op.output)
    c.call("ek_take", struct, *layouts, *places, source=op.source)


SPECS = (
    IntegerSpec(
        "take",
        _take,
        _links,
        tflite=_tflite,
        onnx=_onnx,
        c99=_c99,
        fpga=lambda engine, op: engine.take(op),
        slimmed=_slimmed,
    ),
)
