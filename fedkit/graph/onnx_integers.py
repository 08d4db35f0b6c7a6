"""QuantizeLinear, DequantizeLinear and bytes: the float model between them, and what they tell.

A file in QDQ form is read as the float model that it was made from: an activation that is quantised
stays what it is, but for the cut at 0 where its integers begin there, which takes the place of a
ReLU. What the file says of integers is noted beside it; who makes integers can keep them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto

from fedkit.graph import ir
from fedkit.graph.elements import Moved
from fedkit.graph.file_integers import FileIntegers, Steps
from fedkit.graph.operands import Unsupported, activation, constant, require
from fedkit.graph.ops.arithmetic import affine
from fedkit.graph.ops.registry import KEEPS_SCALE
from fedkit.graph.spec import ModelReader, OnnxNode

BYTES: Mapping[int, int] = {TensorProto.UINT8: 0, TensorProto.INT8: -128}
"""Types of integers of 8 bits -> the least of them."""

MOVES = (
    *("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice"),
    *("Concat", "MaxPool", "Pad", "Clip", "Split", "Gather", "Tile"),
)
"""What gives the values that it reads, integers too."""

_POSITIVE = ("relu", "relu6", "sigmoid", "softmax", "hard_sigmoid")
_OF_INTEGERS: Mapping[str, tuple[int, ...]] = {"Pad": (2,), "Clip": (1, 2)}
"""Which operands of a node that moves integers are integers too."""

_KEEPS_SIGN = (*KEEPS_SCALE, "mean")


class _Reader(ModelReader, Protocol):
    """The reader of ONNX files."""

    values: dict[str, ir.Tensor | Moved | ir.Array]
    types: dict[str, onnx.TypeProto]
    steps: dict[str, Steps]
    integers: FileIntegers
    ops: list[ir.Op]


def note_input(reader: _Reader, graph: onnx.GraphProto, name: str, kind: int) -> None:
    """Note what the bytes of an input are worth: themselves, or what the file makes of them."""
    steps, readers = Steps(1.0, 0, BYTES[kind]), _readers(graph, name)
    if all(node.op_type == "DequantizeLinear" for node in readers):
        found = {_constant_steps(reader, node, BYTES[kind]) for node in readers}
        steps = (found.pop() if len(found) == 1 else None) or steps
    reader.steps[name] = reader.integers.activations[name] = steps


def _readers(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    """Return what reads a value, and what reads it where it was moved to."""
    names, found = {name}, []
    for node in graph.node:
        if names.isdisjoint(node.input):
            continue
        if node.op_type in MOVES:
            names.update(node.output)
        else:
            found.append(node)
    return found


def _constant_steps(reader: _Reader, node: onnx.NodeProto, least: int) -> Steps | None:
    """Return what a node says by initialisers; None if it does by other values, or nonsense."""
    given = [reader.values.get(name) for name in node.input[1:]]
    if not all(isinstance(each, np.ndarray) and each.size == 1 for each in given):
        return None
    scale, zero = (np.asarray(each).item() for each in (*given, np.zeros(1))[:2])
    is_scale = bool(given) and math.isfinite(scale) and scale > 0
    return Steps(float(np.float32(scale)), int(zero), least) if is_scale else None


def fold(operator: str, operands: Sequence[ir.Array], axis: int) -> ir.Array:
    """Return what a QuantizeLinear or DequantizeLinear makes of constants.

    ONNX's reference computes those of the newest opsets alone.

    Args:
        operator: Either.
        operands: Values, scales, and zero points if there are any.
        axis: Of the scales, if there are several.
    """
    values, scales = operands[0], np.asarray(operands[1], np.float32)
    zeros = operands[2] if len(operands) > 2 else np.zeros((), np.uint8)
    scales, zeros = (_laid(each, values.shape, axis) for each in (scales, zeros))
    if operator == "DequantizeLinear":
        whole = values.astype(np.int64) - zeros.astype(np.int64)
        return np.asarray(whole.astype(np.float32) * scales, np.float32)
    require(zeros.dtype in (np.int8, np.uint8), f"integers of type {zeros.dtype}; 8 bits can be")
    ends = np.iinfo(zeros.dtype)
    steps = np.rint(values.astype(np.float32) / scales).astype(np.float64) + zeros
    return np.asarray(np.clip(steps, ends.min, ends.max), zeros.dtype)


def _laid(each: ir.Array, shape: ir.Shape, axis: int) -> ir.Array:
    """Return scales or zero points in a shape that goes with the values."""
    if each.size == 1:
        return each.reshape(())
    rank = len(shape)
    fits = each.ndim == 1 and -rank <= axis < rank and len(each) == shape[axis]
    require(fits, f"{each.shape} scales of values {shape}; one, or one per channel, can be")
    return each.reshape([-1 if at == axis % rank else 1 for at in range(rank)])


def note_constants(reader: _Reader, node: onnx.NodeProto) -> None:
    """Note the scales of what a node of constants dequantises."""
    if node.op_type == "DequantizeLinear":
        scales = reader.values[node.input[1]]
        reader.integers.are_told = True
        reader.integers.constants[node.output[0]] = np.asarray(scales, np.float32).ravel()


def note_activation(reader: _Reader, name: str, value: ir.Tensor) -> None:
    """Note what the integers of a value of the file are worth, if it is of integers."""
    steps = reader.steps.get(name)
    if steps and reader.integers.activations.setdefault(value.name, steps) != steps:
        reader.integers.activations[value.name] = None


def note_weights(reader: _Reader, node: onnx.NodeProto, source: str) -> None:
    """Note the scales of the weights of a node that was read."""
    of_weight = node.input[1] if len(node.input) > 1 else ""
    if of_weight in reader.integers.constants:
        known = source in reader.integers.weights  # by a node of the same name
        scales = reader.integers.constants[of_weight]
        reader.integers.weights[source] = None if known else scales


def real_operands(
    reader: _Reader, node: onnx.NodeProto, operands: tuple[ir.Tensor | Moved | ir.Array | None, ...]
) -> tuple[ir.Tensor | Moved | ir.Array | None, ...]:
    """Return the operands of a node that moves integers, with its constants as what they mean."""
    known, places = reader.steps.get(node.input[0]), _OF_INTEGERS.get(node.op_type, ())
    if known is None or not places:
        return operands
    found = [*operands, *([None] * (1 + places[-1] - len(operands)))]
    for place in places:
        value = found[place]
        if value is None and node.op_type == "Pad":
            value = np.zeros((), np.int64)
        if value is not None:
            wide = np.asarray(constant(value), np.float64)
            found[place] = np.asarray(known.scale * (wide - known.zero), np.float32)
    return tuple(found)


def read_cast(reader: Any, node: Any) -> ir.Tensor:
    """Read a cast to float32, of bytes too."""
    x, name = activation(node.operand(0)), node.proto.input[0]
    kinds = _kind(reader, name), int(node.attribute("to", TensorProto.UNDEFINED))
    if kinds == (TensorProto.FLOAT, TensorProto.FLOAT):
        return x
    known = reader.steps.get(name)
    if known is None or kinds[1] != TensorProto.FLOAT:
        called = [TensorProto.DataType.Name(kind) for kind in kinds]
        raise Unsupported(
            f"a cast of an activation from {called[0]} to {called[1]}; to FLOAT can be"
        )
    return _line(reader, node, x, 1 / known.scale, known.zero)


def read_quantize(reader: Any, node: Any) -> ir.Tensor:
    """Read an activation that becomes integers as itself, and note their scale."""
    x, kind = activation(node.operand(0)), _kind(reader, node.proto.output[0])
    is_float = _kind(reader, node.proto.input[0]) == TensorProto.FLOAT
    require(is_float and kind in BYTES, f"integers of type {_called(kind)}; int8 and uint8 can be")
    steps = _steps(node, BYTES[kind])
    reader.integers.are_told = True
    reader.steps[node.proto.output[0]] = steps
    is_input = all(x.name != op.output for op in reader.ops)
    if steps.begins_at_zero and not is_input and not _is_positive(reader, x.name):
        x = reader.op("relu", node, [x])
    return x


def read_dequantize(reader: Any, node: Any) -> ir.Tensor:
    """Read integers that become an activation again."""
    x, name = activation(node.operand(0)), node.proto.input[0]
    known = reader.steps.get(name)
    if known is None:
        raise Unsupported(f"integers of type {_called(_kind(reader, name))}; int8 and uint8 can be")
    steps = _steps(node, known.least)
    reader.integers.are_told = True
    if steps == known:
        return x
    factor = steps.scale / known.scale
    return _line(reader, node, x, factor, steps.scale * (known.zero - steps.zero))


def _steps(node: OnnxNode, least: int) -> Steps:
    """Return what a node says of integers: one scale, and one zero point or none."""
    scales = np.asarray(constant(node.operand(1), "scales"))
    zero = node.operand(2)
    zeros = np.zeros(1) if zero is None else np.asarray(constant(zero, "zero points"))
    require(
        scales.size == zeros.size == 1,
        f"{max(scales.size, zeros.size)} scales for an activation; one can be",
    )
    scale = float(np.float32(scales.item()))
    require(math.isfinite(scale) and scale > 0, f"a scale of {scale}; it must be positive")
    return Steps(scale, int(zeros.item()), least)


def _line(reader: Any, node: Any, x: ir.Tensor, scale: float, shift: float) -> ir.Tensor:
    if (scale, shift) == (1, 0):
        return x
    channels = x.shape[-1]
    return affine(reader, node, x, np.full(channels, scale), np.full(channels, shift))


def _kind(reader: _Reader, name: str) -> int:
    return int(reader.types[name].tensor_type.elem_type)


def _called(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind))


def _is_positive(reader: _Reader, name: str) -> bool:
    """Whether a value is never below 0, whatever the model reads."""
    made = {op.output: op for op in reader.ops}
    asked, seen = [name], set[str]()
    while asked:
        each = asked.pop()
        if each in seen:
            continue
        seen.add(each)
        op, known = made.get(each), reader.integers.activations.get(each)
        if op is None:
            return False
        if op.kind in _POSITIVE or (known and known.begins_at_zero):
            continue
        if op.kind not in _KEEPS_SIGN:
            return False
        asked += op.inputs
    return True
