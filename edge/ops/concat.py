"""What joins integers; all that is joined has one scale."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from edge.define.rounding import Policy
from edge.ops.builders import CCompiler, OnnxFile, TfliteFile
from edge.ops.integer_spec import IntegerSpec, Link, Operands, same_channels
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from fedkit.graph.ops.concat import along_of, axis_of


def _concat(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    return np.concatenate(operands, axis_of(op))


def _links(graph: ir.Graph, op: ir.Op) -> list[Link]:
    sizes = [graph.tensors[name].shape[-1] for name in op.inputs]
    ends = np.cumsum(sizes)
    return [
        Link(name, np.arange(size), np.arange(end - size, end))
        for name, size, end in zip(op.inputs, sizes, ends, strict=True)
    ]


def starts_of(graph: ir.Graph, op: ir.Op) -> Iterator[tuple[str, int, int]]:
    """Yield each part that is joined along rows or columns, and at which row and column it lies."""
    axis = axis_of(op)
    sizes = [graph.tensors[name].shape[axis] for name in op.inputs]
    for name, start in zip(op.inputs, accumulate(sizes, initial=0), strict=False):
        yield (name, start, 0) if along_of(op) == "rows" else (name, 0, start)


def _tflite(file: TfliteFile, op: ir.Op) -> None:
    axis = axis_of(op) % len(file.graph.tensors[op.output].shape)
    file.operator("CONCATENATION", op.inputs, op.output, "ConcatenationOptions", axis=axis)


def _onnx(file: OnnxFile, op: ir.Op) -> None:
    file.node("Concat", list(op.inputs), op.output, axis=1)


def _onnx_along(file: OnnxFile, op: ir.Op) -> None:
    file.node("Concat", list(op.inputs), op.output, axis=1 + axis_of(op))


def _c99_along(c: CCompiler, op: ir.Op) -> None:
    to, out = c.layout(op.output), c.new(op.output)
    for name, top, left in starts_of(c.graph, op):
        c.call("ek_join", c.layout(name), to, top, left, c.place(name), out, source=op.source)


SPECS = (
    IntegerSpec(
        "concat",
        _concat,
        _links,
        tflite=_tflite,
        onnx=_onnx,
        c99=lambda c, op: c.join(op),
        fpga=lambda engine, op: engine.join(op),
    ),
    IntegerSpec(
        "concat_along",
        _concat,
        same_channels,
        tflite=_tflite,
        onnx=_onnx_along,
        c99=_c99_along,
        fpga=lambda engine, op: engine.put(op, starts_of(engine.graph, op)),
    ),
)
