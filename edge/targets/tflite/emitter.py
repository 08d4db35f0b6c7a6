"""Write a graph as a .tflite flatbuffer, without TensorFlow.

The file format is the schema that ships with the LiteRT runtime. Padding that TFLite's "SAME" and
"VALID" cannot say becomes a PAD op: int8 PAD writes the zero point, and max-pooling gets a PADV2
with the smallest value, which never wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edge.ops.registry import SPECS
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
    """The tables of the file under construction, an `edge.ops.builders.TfliteFile`.

    Tensors and operators refer by index.
    """

    graph: ir.Graph
    index: dict[str, int] = field(default_factory=dict)
    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])  # 0 means "no data"
    held: dict[bytes, int] = field(default_factory=dict)  # of a buffer -> its number
    codes: dict[str, int] = field(default_factory=dict)  # -> version
    operators: list[Any] = field(default_factory=list)
    is_int8: bool = True

    def tensor(self, tensor: ir.Tensor) -> str:
        table = schema.TensorT()
        table.name, table.shape = tensor.name, np.array(tensor.shape, np.int32)
        table.type, table.buffer = _TYPES[tensor.dtype], self._buffer(tensor.data)
        is_of_tokens = tensor.dtype == "int32" and tensor.data is None
        table.quantization = None if is_of_tokens else _quantization(tensor.quantization)
        self.index[tensor.name] = len(self.tensors)
        self.tensors.append(table)
        return tensor.name

    def _buffer(self, data: ir.Array | None) -> int:
        if data is None:
            return 0
        content = np.ascontiguousarray(data).tobytes()
        if content not in self.held:
            buffer = _AlignedBuffer()
            buffer.data = content
            self.held[content] = len(self.buffers)
            self.buffers.append(buffer)
        return self.held[content]

    def constant(self, name: str, values: Sequence[int] | Sequence[Sequence[int]]) -> str:
        data = np.array(values, np.int32)
        return self.tensor(ir.Tensor(name, data.shape, "int32", data))

    def operator(
        self,
        code: str,
        inputs: Sequence[str],
        output: str,
        options: str = "",
        versions: tuple[int, int] = (1, 2),
        **fields: Any,
    ) -> None:
        table = schema.OperatorT()
        table.opcodeIndex = list(self.codes).index(code) if code in self.codes else len(self.codes)
        self.codes[code] = max(versions[self.is_int8], self.codes.get(code, 0))
        table.inputs = np.array([self.index[name] for name in inputs], np.int32)
        table.outputs = np.array([self.index[output]], np.int32)
        if options:
            table.builtinOptions = getattr(schema, f"{options}T")()
            table.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            for name, value in fields.items():
                getattr(table.builtinOptions, name)  # what the table lacks is an error, not ignored
                setattr(table.builtinOptions, name, value)
        self.operators.append(table)

    def activation(self, op: ir.Op) -> int:
        return _ACTIVATIONS[op.activation]

    def window(
        self, op: ir.Op, fill: Literal["zero", "lowest"] | None
    ) -> tuple[str, dict[str, Any]]:
        x, padding = self._padded(op, fill)
        height, width = op.sliding.stride
        fused = {"fusedActivationFunction": self.activation(op)}
        return x, {"padding": padding, "strideH": height, "strideW": width, **fused}

    def _padded(self, op: ir.Op, fill: Literal["zero", "lowest"] | None) -> tuple[str, int]:
        """Return the tensor to read and TFLite's word for the padding, after a PAD if none is."""
        window, x = op.sliding, self.graph.tensors[op.inputs[0]]
        out = self.graph.tensors[op.output].shape
        if not any(window.padding):
            return x.name, schema.Padding.VALID
        # "SAME" also fixes the output size, to the input size over the stride, rounded up.
        sizes = tuple(-(-x.shape[1 + axis] // window.stride[axis]) for axis in range(2))
        same = ir.same_padding((x.shape[1], x.shape[2]), (out[1], out[2]), window)
        if sizes == out[1:3] and window.padding == same:
            return x.name, schema.Padding.SAME
        if fill is None:
            raise ExportError(
                f"module {op.source!r}: average pooling that pads by {window.padding} without "
                f"counting the padding has no TFLite form; set count_include_pad=True"
            )
        shape = (1, *ir.Window(padding=window.padding).output(*x.shape[1:3]), x.shape[3])
        name = self.tensor(ir.Tensor(f"{op.output}.padded", shape, x.dtype, None, x.quantization))
        if fill == "lowest":
            self._pad_lowest(x, window.padding, name)
        else:
            self.pad(x, window.padding, name)
        return name, schema.Padding.VALID

    def pad(self, x: ir.Tensor, padding: Sequence[int], output: str) -> None:
        self.operator("PAD", [x.name, self._amounts(padding, output)], output, "PadOptions")

    def _pad_lowest(self, x: ir.Tensor, padding: Sequence[int], output: str) -> None:
        lowest = np.array([-128], np.int8) if self.is_int8 else np.finfo(np.float32).min.reshape(1)
        value = self.tensor(ir.Tensor(f"{output}.value", (1,), x.dtype, lowest, x.quantization))
        inputs = [x.name, self._amounts(padding, output), value]
        self.operator("PADV2", inputs, output, "PadV2Options")

    def _amounts(self, padding: Sequence[int], name: str) -> str:
        top, bottom, left, right = padding
        return self.constant(f"{name}.amounts", [[0, 0], [top, bottom], [left, right], [0, 0]])

    def reshape(self, x: str, output: str, shape: ir.Shape) -> None:
        target = self.constant(f"{output}.shape", shape)
        new = np.array(shape, np.int32)
        self.operator("RESHAPE", [x, target], output, "ReshapeOptions", (1, 1), newShape=new)

    def cast(self, x: ir.Tensor, output: str, to: ir.DType) -> str:
        self.tensor(ir.Tensor(output, x.shape, to))
        types = {"inDataType": _TYPES[x.dtype], "outDataType": _TYPES[to]}
        self.operator("CAST", [x.name], output, "CastOptions", (1, 1), **types)
        return output

    def bytes(self) -> bytes:
        model = schema.ModelT()
        model.version, model.description = _SCHEMA_VERSION, "fedkit edge export"
        model.operatorCodes = [_operator_code(*each) for each in self.codes.items()]
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
    file = _File(graph, is_int8=graph.tensors[graph.inputs[0]].dtype != "float32")
    for tensor in graph.tensors.values():
        file.tensor(tensor)
    for op in graph.ops:
        write = SPECS[op.kind].tflite if op.kind in SPECS else None
        if write is None:
            raise ExportError(f"op {op.kind} of module {op.source!r} has no TFLite form; fold it")
        write(file, op)
    return file.bytes()


def _operator_code(code: str, version: int) -> Any:
    table = schema.OperatorCodeT()
    table.builtinCode = getattr(schema.BuiltinOperator, code)
    # What readers before schema 3a look at; 127 stands for all that they do not know.
    table.deprecatedBuiltinCode = min(table.builtinCode, 127)
    table.version = version
    return table


def _quantization(quantization: ir.Quantization | None) -> Any:
    if quantization is None:
        return None
    table = schema.QuantizationParametersT()
    table.scale = np.array(quantization.scale, np.float32)
    table.zeroPoint = np.array(quantization.zero_point, np.int64)
    table.quantizedDimension = quantization.axis or 0
    return table
