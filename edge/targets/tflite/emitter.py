"""Write a graph as a .tflite flatbuffer, without TensorFlow.

The file format is the schema that ships with the LiteRT runtime. Padding that TFLite's "SAME" and
"VALID" cannot say becomes a PAD op: int8 PAD writes the zero point, and max-pooling gets a PADV2
with the smallest value, which never wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from fedkit.core.errors import ExportError
from fedkit.graph import ir

_SCHEMA_VERSION = 3
_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16

_TYPES: Mapping[ir.DType, int] = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "int32": schema.TensorType.INT32,
}

_ACTIVATIONS: Mapping[ir.Activation, int] = {
    "none": schema.ActivationFunctionType.NONE,
    "relu": schema.ActivationFunctionType.RELU,
    "relu6": schema.ActivationFunctionType.RELU6,
}

_VERSIONS: Mapping[str, tuple[int, int]] = {
    "CONV_2D": (1, 3),
    "DEPTHWISE_CONV_2D": (1, 3),
    "FULLY_CONNECTED": (1, 4),
    "ADD": (1, 2),
    "CONCATENATION": (1, 2),
    "MEAN": (1, 2),
    "AVERAGE_POOL_2D": (1, 2),
    "MAX_POOL_2D": (1, 2),
    "RELU": (1, 2),
    "RELU6": (1, 2),
    "PAD": (1, 2),
    "PADV2": (1, 2),
    "RESHAPE": (1, 1),
    "TRANSPOSE": (1, 2),
}
"""Operator -> version for float32 and for int8: the lowest that has the type, for old runtimes."""


class _AlignedBuffer(schema.BufferT):  # type: ignore[misc]  # the schema module is untyped
    """A buffer on 16 bytes, as the schema demands; the generated writer does not see to that."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        content = bytes(self.data)
        builder.StartVector(1, len(content), _ALIGNMENT)
        builder.head -= len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))


@dataclass
class _File:
    """The tables of the file under construction; tensors and operators refer by index."""

    graph: ir.Graph
    index: dict[str, int] = field(default_factory=dict)
    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])  # 0 means "no data"
    codes: dict[str, int] = field(default_factory=dict)
    operators: list[Any] = field(default_factory=list)
    is_int8: bool = True

    def tensor(self, tensor: ir.Tensor) -> str:
        table = schema.TensorT()
        table.name, table.shape = tensor.name, np.array(tensor.shape, np.int32)
        table.type, table.buffer = _TYPES[tensor.dtype], self._buffer(tensor.data)
        table.quantization = _quantization(tensor.quantization)
        self.index[tensor.name] = len(self.tensors)
        self.tensors.append(table)
        return tensor.name

    def _buffer(self, data: ir.Array | None) -> int:
        if data is None:
            return 0
        buffer = _AlignedBuffer()
        buffer.data = np.ascontiguousarray(data).tobytes()
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def constant(self, name: str, values: Sequence[int] | Sequence[Sequence[int]]) -> str:
        data = np.array(values, np.int32)
        return self.tensor(ir.Tensor(name, data.shape, "int32", data))

    def operator(
        self, code: str, inputs: Sequence[str], output: str, options: Any = None, union: str = ""
    ) -> None:
        table = schema.OperatorT()
        table.opcodeIndex = self.codes.setdefault(code, len(self.codes))
        table.inputs = np.array([self.index[name] for name in inputs], np.int32)
        table.outputs = np.array([self.index[output]], np.int32)
        if options is not None:
            table.builtinOptions = options
            table.builtinOptionsType = getattr(schema.BuiltinOptions, union)
        self.operators.append(table)

    def bytes(self) -> bytes:
        model = schema.ModelT()
        model.version, model.description = _SCHEMA_VERSION, "fedkit edge export"
        model.operatorCodes = [_operator_code(code, self.is_int8) for code in self.codes]
        model.subgraphs, model.buffers = [self._subgraph()], self.buffers
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())

    def _subgraph(self) -> Any:
        table = schema.SubGraphT()
        table.name, table.tensors, table.operators = "main", self.tensors, self.operators
        table.inputs = np.array([self.index[n] for n in self.graph.inputs], np.int32)
        table.outputs = np.array([self.index[n] for n in self.graph.outputs], np.int32)
        return table


def emit(graph: ir.Graph) -> bytes:
    """Write a graph as the bytes of a .tflite file.

    Args:
        graph: Optimised; int8 as `quantize` leaves it, or still float32 (to compare numbers).

    Returns:
        A flatbuffer with identifier TFL3; the same graph always gives the same bytes.

    Raises:
        ExportError: The graph holds an op that TFLite cannot express.
    """
    file = _File(graph, is_int8=graph.tensors[graph.inputs[0]].dtype == "int8")
    for tensor in graph.tensors.values():
        file.tensor(tensor)
    for op in graph.ops:
        if op.kind not in _EMITTERS:
            raise ExportError(f"op {op.kind} of module {op.source!r} has no TFLite form; fold it")
        _EMITTERS[op.kind](file, op)
    return file.bytes()


def _operator_code(code: str, is_int8: bool) -> Any:
    table = schema.OperatorCodeT()
    table.builtinCode = getattr(schema.BuiltinOperator, code)
    table.deprecatedBuiltinCode = table.builtinCode  # what readers before schema 3a look at
    table.version = _VERSIONS[code][is_int8]
    return table


def _quantization(quantization: ir.Quantization | None) -> Any:
    if quantization is None:
        return None
    table = schema.QuantizationParametersT()
    table.scale = np.array(quantization.scale, np.float32)
    table.zeroPoint = np.array(quantization.zero_point, np.int64)
    table.quantizedDimension = quantization.axis or 0
    return table


def _sliding(op: ir.Op) -> ir.Window:
    assert op.window is not None  # the verifier's rule
    return op.window


def _options(options: Any, op: ir.Op, padding: int) -> Any:
    window = _sliding(op)
    options.padding = padding
    options.strideH, options.strideW = window.stride
    options.fusedActivationFunction = _ACTIVATIONS[op.activation]
    return options


def _resolve_padding(file: _File, op: ir.Op) -> tuple[str, int]:
    """Return the tensor to read and TFLite's word for the padding; emit a PAD if there is none."""
    window, x = _sliding(op), file.graph.tensors[op.inputs[0]]
    out = file.graph.tensors[op.output].shape
    if not any(window.padding):
        return x.name, schema.Padding.VALID
    # "SAME" also fixes the output size, to the input size over the stride, rounded up.
    sizes = tuple(-(-x.shape[1 + axis] // window.stride[axis]) for axis in range(2))
    same = ir.same_padding((x.shape[1], x.shape[2]), (out[1], out[2]), window)
    if sizes == out[1:3] and window.padding == same:
        return x.name, schema.Padding.SAME
    if op.kind == "avg_pool2d":
        raise ExportError(
            f"module {op.source!r}: average pooling that pads by {window.padding} without "
            f"counting the padding has no TFLite form; set count_include_pad=True"
        )
    return _emit_pad(file, op, x), schema.Padding.VALID


def _emit_pad(file: _File, op: ir.Op, x: ir.Tensor) -> str:
    padding = _sliding(op).padding
    shape = (1, *ir.Window(padding=padding).output(x.shape[1], x.shape[2]), x.shape[3])
    name = f"{op.output}.padded"
    file.tensor(ir.Tensor(name, shape, x.dtype, None, x.quantization))
    if op.kind == "max_pool2d":
        _write_padv2(file, x, padding, name)
    else:
        _write_pad(file, x.name, padding, name)
    return name


def _paddings(file: _File, padding: tuple[int, int, int, int], name: str) -> str:
    top, bottom, left, right = padding
    return file.constant(f"{name}.amounts", [[0, 0], [top, bottom], [left, right], [0, 0]])


def _write_pad(file: _File, x: str, padding: tuple[int, int, int, int], name: str) -> None:
    amounts = _paddings(file, padding, name)
    file.operator("PAD", [x, amounts], name, schema.PadOptionsT(), "PadOptions")


def _write_padv2(file: _File, x: ir.Tensor, padding: tuple[int, int, int, int], name: str) -> None:
    lowest = np.array([-128], np.int8) if file.is_int8 else np.finfo(np.float32).min.reshape(1)
    value = file.tensor(ir.Tensor(f"{name}.value", (1,), x.dtype, lowest, x.quantization))
    inputs = [x.name, _paddings(file, padding, name), value]
    file.operator("PADV2", inputs, name, schema.PadV2OptionsT(), "PadV2Options")


def _conv2d(file: _File, op: ir.Op) -> None:
    x, padding = _resolve_padding(file, op)
    options = _options(schema.Conv2DOptionsT(), op, padding)
    options.dilationHFactor, options.dilationWFactor = _sliding(op).dilation
    file.operator("CONV_2D", [x, *op.inputs[1:]], op.output, options, "Conv2DOptions")


def _depthwise(file: _File, op: ir.Op) -> None:
    x, padding = _resolve_padding(file, op)
    options = _options(schema.DepthwiseConv2DOptionsT(), op, padding)
    options.dilationHFactor, options.dilationWFactor = _sliding(op).dilation
    channels = (file.graph.tensors[name].shape[3] for name in (op.output, op.inputs[0]))
    options.depthMultiplier = next(channels) // next(channels)
    file.operator(
        "DEPTHWISE_CONV_2D", [x, *op.inputs[1:]], op.output, options, "DepthwiseConv2DOptions"
    )


def _linear(file: _File, op: ir.Op) -> None:
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = _ACTIVATIONS[op.activation]
    file.operator("FULLY_CONNECTED", op.inputs, op.output, options, "FullyConnectedOptions")


def _add(file: _File, op: ir.Op) -> None:
    options = schema.AddOptionsT()
    options.fusedActivationFunction = _ACTIVATIONS[op.activation]
    file.operator("ADD", op.inputs, op.output, options, "AddOptions")


def _concat(file: _File, op: ir.Op) -> None:
    options = schema.ConcatenationOptionsT()
    options.axis = len(file.graph.tensors[op.output].shape) - 1
    file.operator("CONCATENATION", op.inputs, op.output, options, "ConcatenationOptions")


def _mean(file: _File, op: ir.Op) -> None:
    """Write a mean that keeps its axes: without them other kernels are taken, which round else."""
    x, out = (file.graph.tensors[name] for name in (op.inputs[0], op.output))
    is_map = len(out.shape) == 4
    shape = (1, 1, 1, out.shape[-1])
    kept = replace(out, name=f"{op.output}.map", shape=shape)
    name = op.output if is_map else file.tensor(kept)
    options = schema.ReducerOptionsT()
    options.keepDims = True
    axes = file.constant(f"{op.output}.axes", [1, 2])
    file.operator("MEAN", [x.name, axes], name, options, "ReducerOptions")
    if not is_map:
        _write_reshape(file, name, op.output, out.shape)


def _pool(code: str) -> Callable[[_File, ir.Op], None]:
    def emit_pool(file: _File, op: ir.Op) -> None:
        x, padding = _resolve_padding(file, op)
        options = _options(schema.Pool2DOptionsT(), op, padding)
        options.filterHeight, options.filterWidth = _sliding(op).kernel
        file.operator(code, [x], op.output, options, "Pool2DOptions")

    return emit_pool


def _unary(code: str) -> Callable[[_File, ir.Op], None]:
    return lambda file, op: file.operator(code, op.inputs, op.output)


def _pad(file: _File, op: ir.Op) -> None:
    _write_pad(file, op.inputs[0], _sliding(op).padding, op.output)


def _reshape(file: _File, op: ir.Op) -> None:
    _write_reshape(file, op.inputs[0], op.output, file.graph.tensors[op.output].shape)


def _write_reshape(file: _File, x: str, output: str, shape: ir.Shape) -> None:
    options = schema.ReshapeOptionsT()
    options.newShape = np.array(shape, np.int32)
    target = file.constant(f"{output}.shape", shape)
    file.operator("RESHAPE", [x, target], output, options, "ReshapeOptions")


def _flatten_nchw(file: _File, op: ir.Op) -> None:
    x = file.graph.tensors[op.inputs[0]]
    _, h, w, c = x.shape
    name = file.tensor(ir.Tensor(f"{op.output}.nchw", (1, c, h, w), x.dtype, None, x.quantization))
    axes = file.constant(f"{name}.axes", [0, 3, 1, 2])
    file.operator("TRANSPOSE", [x.name, axes], name, schema.TransposeOptionsT(), "TransposeOptions")
    _write_reshape(file, name, op.output, (1, math.prod(x.shape)))


_EMITTERS: Mapping[ir.Kind, Callable[[_File, ir.Op], None]] = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise,
    "linear": _linear,
    "add": _add,
    "concat": _concat,
    "mean": _mean,
    "avg_pool2d": _pool("AVERAGE_POOL_2D"),
    "max_pool2d": _pool("MAX_POOL_2D"),
    "relu": _unary("RELU"),
    "relu6": _unary("RELU6"),
    "pad": _pad,
    "reshape": _reshape,
    "flatten_nchw": _flatten_nchw,
}
