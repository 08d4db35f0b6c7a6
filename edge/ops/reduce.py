"""Reductions of whole axes in integers."""

from __future__ import annotations

from dataclasses import replace

from edge.define.rounding import Policy
from edge.ops.builders import OnnxFile, Rescaled, TfliteFile
from edge.ops.integer_spec import IntegerSpec, Operands, same_channels
from fedkit.core.numerics import Int64s
from fedkit.graph import ir

_MEAN = Rescaled("GlobalAveragePool", "QLinearGlobalAveragePool")


def _mean(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    x, out = operands[0], graph.tensors[op.output]
    count = x.shape[1] * x.shape[2]
    means = policy.mean(x.sum((1, 2)), count, graph.tensors[op.inputs[0]], out)
    return (means + out.zero_point).reshape(len(x), *out.shape[1:])


def _tflite(file: TfliteFile, op: ir.Op) -> None:
    """Write a mean that keeps its axes: without them other kernels are taken, which round else."""
    x, out = (file.graph.tensors[name] for name in (op.inputs[0], op.output))
    is_map = len(out.shape) == 4
    kept = replace(out, name=f"{op.output}.map", shape=(1, 1, 1, out.shape[-1]))
    name = op.output if is_map else file.tensor(kept)
    axes = file.constant(f"{op.output}.axes", [1, 2])
    file.operator("MEAN", [x.name, axes], name, "ReducerOptions", keepDims=True)
    if not is_map:
        file.reshape(name, op.output, out.shape)


def _onnx(file: OnnxFile, op: ir.Op) -> None:
    shape = file.graph.tensors[op.output].shape
    if len(shape) == 4:
        file.rescaled(op, op.output, _MEAN)
        return
    file.rescaled(op, f"{op.output}.map", _MEAN)
    file.reshape(f"{op.output}.map", op.output, shape)


SPECS = (
    IntegerSpec(
        "mean",
        _mean,
        same_channels,
        tflite=_tflite,
        onnx=_onnx,
        c99=lambda c, op: c.mean(op),
        fpga=lambda engine, op: engine.mean(op),
        takes_whole_offset=True,
    ),
)
