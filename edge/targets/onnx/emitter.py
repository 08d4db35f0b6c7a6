"""Write an int8 graph as an .onnx file, in either of the two forms in which ONNX says int8.

  qdq        float operators between DequantizeLinear and QuantizeLinear: any ONNX runtime computes
             it, those that know int8 fuse it
  qoperator  integer operators; what ONNX itself lacks is onnxruntime's, in the domain com.microsoft

ONNX is NCHW: activations keep the names of the graph, but images are [1, c, h, w] in the file.
Convolution weights become [out, in per group, kernel height, kernel width]. What moves or chooses
values without a new scale (pooling by maximum, concats, padding, reshaping) works on int8 in both
forms. An activation is the saturation of int8; where that is not enough, a Clip of integers
follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edge.ops.builders import Rescaled
from edge.ops.registry import SPECS
from fedkit.core.errors import ExportError
from fedkit.graph import integers, ir
from fedkit.graph.ops.registry import WEIGHTED, spec_of

Form = Literal["qdq", "qoperator"]

_OPSET = 19  # the lowest whose quantisation ONNX's own reference computes
_IR_VERSION = 9  # of the same release as the opset


@dataclass
class _File:
    """The model under construction, an `edge.ops.builders.OnnxFile`; values have names."""

    graph: ir.Graph
    form: Form
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def node(
        self, operator: str, inputs: list[str], output: str, domain: str = "", **attributes: Any
    ) -> str:
        made = helper.make_node(
            operator, inputs, [output], name=output, domain=domain, **attributes
        )
        self.nodes.append(made)
        return output

    def constant(self, name: str, values: ir.Array) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(values, order="C"), name)
        return name

    @property
    def is_integer(self) -> bool:
        return self.form == "qoperator"

    def cast(self, x: str, output: str, to: type[np.generic]) -> str:
        return self.node("Cast", [x], output, to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))

    def add_operands(self, op: ir.Op) -> None:
        """Add the constants that stand in the place of activations."""
        if spec_of(op).takes_constant:
            for name in op.inputs:
                if (data := self.graph.tensors[name].data) is not None:
                    self.constant(name, np.moveaxis(data, -1, 1) if data.ndim == 4 else data)

    def scales(self, name: str) -> list[str]:
        tensor = self.graph.tensors[name]
        quantization = tensor.quantization
        assert quantization is not None  # checked before anything is emitted
        whole = quantization.axis is None
        scale, zero_point = (
            np.array(values[0] if whole else values, dtype)
            for values, dtype in (
                (quantization.scale, np.float32),
                (quantization.zero_point, tensor.dtype),
            )
        )
        return [
            self.constant(f"{name}.scale", scale),
            self.constant(f"{name}.zero_point", zero_point),
        ]

    def rescaled(self, op: ir.Op, result: str, operators: Rescaled, **attributes: Any) -> None:
        low, high = integers.limits(self.graph, op)
        saturates = (low, high) == (-128, 127)
        written = result if saturates else f"{result}.unclipped"
        if self.form == "qdq":
            operands = [self.dequantised(op, number) for number in range(len(op.inputs))]
            value = self.node(operators.real, operands, f"{result}.real", **attributes)
            self.quantised(op, value, written)
        else:
            operands = self._integer_operands(op, operators.bias_first)
            self.node(operators.integer, operands, written, operators.domain, **attributes)
        if not saturates:
            bounds = [
                self.constant(f"{result}.{name}", np.array(bound, np.int8))
                for name, bound in (("low", low), ("high", high))
            ]
            self.node("Clip", [written, *bounds], result)

    def dequantised(self, op: ir.Op, number: int) -> str:
        # Runtimes fuse a DequantizeLinear into the one operator that reads it: each has its own.
        name = op.inputs[number]
        operands, real = [name, *self.scales(name)], f"{op.output}.operand{number}"
        if self.graph.tensors[name].data is None:
            return self.node("DequantizeLinear", operands, real)
        return self.node("DequantizeLinear", operands, real, axis=0)

    def quantised(self, op: ir.Op, value: str, result: str) -> None:
        self.node("QuantizeLinear", [value, *self.scales(op.output)], result)

    def _integer_operands(self, op: ir.Op, bias_first: bool) -> list[str]:
        bias = [op.inputs[2]] if op.kind in WEIGHTED else []
        scaled = [name for name in op.inputs if name not in bias]
        operands = [part for name in scaled for part in (name, *self.scales(name))]
        out = self.scales(op.output)
        return [*operands, *bias, *out] if bias_first else [*operands, *out, *bias]

    def reshape(self, x: str, output: str, shape: ir.Shape) -> None:
        target = self.constant(f"{output}.shape", np.array(shape, np.int64))
        self.node("Reshape", [x, target], output)

    def bytes(self) -> bytes:
        inputs, outputs = ([self._port(name) for name in names] for names in _ports(self.graph))
        constants = list(self.constants.values())
        made = helper.make_graph(self.nodes, "main", inputs, outputs, constants)
        domains = sorted({"", *(node.domain for node in self.nodes)})
        opsets = [helper.make_opsetid(name, 1 if name else _OPSET) for name in domains]
        model = helper.make_model(
            made, producer_name="fedkit", ir_version=_IR_VERSION, opset_imports=opsets
        )
        helper.set_model_props(model, _metadata(self.graph))
        content: bytes = model.SerializeToString(deterministic=True)
        return content

    def _port(self, name: str) -> onnx.ValueInfoProto:
        tensor = self.graph.tensors[name]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        return helper.make_tensor_value_info(name, kind, file_shape(tensor.shape))


def emit(graph: ir.Graph, form: Form = "qdq") -> bytes:
    """Write a graph as the bytes of an .onnx file.

    Args:
        graph: int8, as `quantize` leaves it.
        form: How int8 is said; see the module.

    Returns:
        A model with int8 inputs (int32 of tokens) and outputs, batch 1, images [1, c, h, w]. Its
        metadata give the `scale` and `zero_point` of each input and output by name. The same graph
        always gives the same bytes.

    Raises:
        ExportError: There is no such form, the graph is not int8, or it holds ops that the file
            cannot express; all of them are named.
    """
    if form not in get_args(Form):
        raise ExportError(f"form {form!r} is unknown; choose from {', '.join(get_args(Form))}")
    obstacles = list(_obstacles(graph))
    if obstacles:
        raise ExportError(f"the graph has no ONNX form: {'; '.join(obstacles)}")
    file = _File(graph, form)
    for op in graph.ops:
        file.add_operands(op)
        if write := SPECS[op.kind].onnx:
            write(file, op)
    return file.bytes()


def file_shape(shape: ir.Shape) -> ir.Shape:
    """Return the shape that an activation of the graph has in the file."""
    return (shape[0], shape[3], shape[1], shape[2]) if len(shape) == 4 else shape


def _obstacles(graph: ir.Graph) -> Iterator[str]:
    for name in graph.inputs:
        if graph.tensors[name].dtype == "float32":
            yield f"input {name!r} is float32, not int8: quantise the graph"
    for op in graph.ops:
        spec = SPECS.get(op.kind)
        if spec is None or spec.onnx is None:
            yield f"op {op.kind} of module {op.source!r} cannot be written: fold it"
        elif reason := spec.not_onnx(op):
            yield f"op {op.kind} of module {op.source!r} {reason}"


def _ports(graph: ir.Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return graph.inputs, graph.outputs


def _metadata(graph: ir.Graph) -> dict[str, str]:
    ports = [graph.tensors[name] for names in _ports(graph) for name in names]
    scales = {f"{port.name}.scale": repr(port.scale) for port in ports}
    return scales | {f"{port.name}.zero_point": str(port.zero_point) for port in ports}
