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

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fedkit.core.errors import ExportError
from fedkit.graph import integers, ir
from fedkit.graph.ops.registry import WEIGHTED

Form = Literal["qdq", "qoperator"]

_OPSET = 19  # the lowest whose quantisation ONNX's own reference computes
_IR_VERSION = 9  # of the same release as the opset
_MICROSOFT = "com.microsoft"

_RESCALED: Mapping[ir.Kind, tuple[str, str, str]] = {
    "conv2d": ("Conv", "QLinearConv", ""),
    "depthwise_conv2d": ("Conv", "QLinearConv", ""),
    "linear": ("Gemm", "QGemm", _MICROSOFT),
    "add": ("Add", "QLinearAdd", _MICROSOFT),
    "mean": ("GlobalAveragePool", "QLinearGlobalAveragePool", _MICROSOFT),
    "avg_pool2d": ("AveragePool", "QLinearAveragePool", _MICROSOFT),
}
"""Kind -> float operator, integer operator, the domain of the latter."""


@dataclass
class _File:
    """The model under construction; nodes refer to values by name."""

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

    def scales(self, name: str) -> list[str]:
        """Return the names of the scale and the zero point of a tensor."""
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
        shape = file_shape(self.graph.tensors[name].shape)
        return helper.make_tensor_value_info(name, onnx.TensorProto.INT8, shape)


def emit(graph: ir.Graph, form: Form = "qdq") -> bytes:
    """Write a graph as the bytes of an .onnx file.

    Args:
        graph: int8, as `quantize` leaves it.
        form: How int8 is said; see the module.

    Returns:
        A model with int8 inputs and outputs, batch 1, images [1, c, h, w]. Its metadata give the
        `scale` and `zero_point` of each input and output by name. The same graph always gives the
        same bytes.

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
        _EMITTERS[op.kind](file, op)
    return file.bytes()


def file_shape(shape: ir.Shape) -> ir.Shape:
    """Return the shape that an activation of the graph has in the file."""
    return (shape[0], shape[3], shape[1], shape[2]) if len(shape) == 4 else shape


def _obstacles(graph: ir.Graph) -> Iterator[str]:
    for name in graph.inputs:
        if graph.tensors[name].dtype != "int8":
            yield f"input {name!r} is {graph.tensors[name].dtype}, not int8: quantise the graph"
    for op in graph.ops:
        if op.kind not in _EMITTERS:
            yield f"op {op.kind} of module {op.source!r} cannot be written: fold it"
        if op.kind == "avg_pool2d" and _sliding(op).dilation != (1, 1):
            yield (
                f"average pooling of module {op.source!r} is dilated by {_sliding(op).dilation}, "
                f"which the integer form cannot say: use dilation 1"
            )


def _ports(graph: ir.Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return graph.inputs, graph.outputs


def _metadata(graph: ir.Graph) -> dict[str, str]:
    ports = [graph.tensors[name] for names in _ports(graph) for name in names]
    scales = {f"{port.name}.scale": repr(port.scale) for port in ports}
    return scales | {f"{port.name}.zero_point": str(port.zero_point) for port in ports}


def _sliding(op: ir.Op) -> ir.Window:
    assert op.window is not None  # the verifier's rule
    return op.window


def _pooling(op: ir.Op) -> dict[str, Any]:
    window = _sliding(op)
    top, bottom, left, right = window.padding
    return {
        "kernel_shape": window.kernel,
        "strides": window.stride,
        "pads": (top, left, bottom, right),
    }


# Ops that rescale


def _rescaled(file: _File, op: ir.Op, result: str, **attributes: Any) -> None:
    """Write an op whose sums become int8 again, in the form of the file."""
    real, integer, domain = _RESCALED[op.kind]
    low, high = integers.limits(file.graph, op)
    saturates = (low, high) == (-128, 127)
    written = result if saturates else f"{result}.unclipped"
    if file.form == "qdq":
        operands = [_dequantised(file, op, number) for number in range(len(op.inputs))]
        value = file.node(real, operands, f"{result}.real", **attributes)
        file.node("QuantizeLinear", [value, *file.scales(op.output)], written)
    else:
        file.node(integer, _integer_operands(file, op), written, domain, **attributes)
    if not saturates:
        bounds = [
            file.constant(f"{result}.{name}", np.array(bound, np.int8))
            for name, bound in (("low", low), ("high", high))
        ]
        file.node("Clip", [written, *bounds], result)


def _dequantised(file: _File, op: ir.Op, number: int) -> str:
    # Runtimes fuse a DequantizeLinear into the one operator that reads it, so each has its own.
    name = op.inputs[number]
    operands, real = [name, *file.scales(name)], f"{op.output}.operand{number}"
    if file.graph.tensors[name].data is None:
        return file.node("DequantizeLinear", operands, real)
    return file.node("DequantizeLinear", operands, real, axis=0)


def _integer_operands(file: _File, op: ir.Op) -> list[str]:
    bias = [op.inputs[2]] if op.kind in WEIGHTED else []
    scaled = [name for name in op.inputs if name not in bias]
    operands = [part for name in scaled for part in (name, *file.scales(name))]
    out = file.scales(op.output)
    return [*operands, *bias, *out] if op.kind == "linear" else [*operands, *out, *bias]


def _weights(file: _File, op: ir.Op, *axes: int) -> None:
    weight, bias = op.inputs[1:]
    file.constant(weight, file.graph.constant(weight).transpose(axes))
    file.constant(bias, file.graph.constant(bias))


def _conv2d(file: _File, op: ir.Op) -> None:
    _weights(file, op, 0, 3, 1, 2)
    _rescaled(file, op, op.output, dilations=_sliding(op).dilation, **_pooling(op))


def _depthwise(file: _File, op: ir.Op) -> None:
    _weights(file, op, 3, 0, 1, 2)
    groups = file.graph.tensors[op.inputs[0]].shape[3]
    dilations = _sliding(op).dilation
    _rescaled(file, op, op.output, group=groups, dilations=dilations, **_pooling(op))


def _linear(file: _File, op: ir.Op) -> None:
    _weights(file, op, 0, 1)
    _rescaled(file, op, op.output, transB=1)


def _add(file: _File, op: ir.Op) -> None:
    _rescaled(file, op, op.output)


def _mean(file: _File, op: ir.Op) -> None:
    shape = file.graph.tensors[op.output].shape
    if len(shape) == 4:
        _rescaled(file, op, op.output)
        return
    _rescaled(file, op, f"{op.output}.map")
    _write_reshape(file, f"{op.output}.map", op.output, shape)


def _avg_pool2d(file: _File, op: ir.Op) -> None:
    _rescaled(file, op, op.output, **_pooling(op))


def _activation(file: _File, op: ir.Op) -> None:
    # The integer form has none of its own: what is between two scales is float.
    real = [_dequantised(file, op, 0)]
    if op.kind == "relu":
        value = file.node("Relu", real, f"{op.output}.real")
    else:
        bounds = [
            file.constant(f"{op.output}.{name}", np.array(bound, np.float32))
            for name, bound in (("low", 0.0), ("high", 6.0))
        ]
        value = file.node("Clip", [*real, *bounds], f"{op.output}.real")
    file.node("QuantizeLinear", [value, *file.scales(op.output)], op.output)


# Ops that keep the scale


def _max_pool2d(file: _File, op: ir.Op) -> None:
    dilations = _sliding(op).dilation
    file.node("MaxPool", [op.inputs[0]], op.output, dilations=dilations, **_pooling(op))


def _concat(file: _File, op: ir.Op) -> None:
    file.node("Concat", list(op.inputs), op.output, axis=1)


def _pad(file: _File, op: ir.Op) -> None:
    x = file.graph.tensors[op.inputs[0]]
    top, bottom, left, right = _sliding(op).padding
    amounts = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
    file.node(
        "Pad",
        [
            x.name,
            file.constant(f"{op.output}.amounts", amounts),
            file.constant(f"{op.output}.value", np.array(x.zero_point, np.int8)),
        ],
        op.output,
    )


def _reshape(file: _File, op: ir.Op) -> None:
    """Write a reshape, which counts in the order of NHWC."""
    name, shape = op.inputs[0], file.graph.tensors[op.inputs[0]].shape
    out = file.graph.tensors[op.output].shape
    if _order_matters(shape):
        name = file.node("Transpose", [name], f"{op.output}.nhwc", perm=(0, 2, 3, 1))
    if not _order_matters(out):
        _write_reshape(file, name, op.output, file_shape(out))
        return
    _write_reshape(file, name, f"{op.output}.shaped", out)
    file.node("Transpose", [f"{op.output}.shaped"], op.output, perm=(0, 3, 1, 2))


def _order_matters(shape: ir.Shape) -> bool:
    """Return whether NHWC and NCHW differ in the order of the elements."""
    return len(shape) == 4 and shape[3] > 1 and shape[1] * shape[2] > 1


def _flatten_nchw(file: _File, op: ir.Op) -> None:
    size = math.prod(file.graph.tensors[op.inputs[0]].shape)
    _write_reshape(file, op.inputs[0], op.output, (1, size))


def _write_reshape(file: _File, x: str, output: str, shape: ir.Shape) -> None:
    target = file.constant(f"{output}.shape", np.array(shape, np.int64))
    file.node("Reshape", [x, target], output)


_EMITTERS: Mapping[ir.Kind, Callable[[_File, ir.Op], None]] = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise,
    "linear": _linear,
    "add": _add,
    "concat": _concat,
    "mean": _mean,
    "avg_pool2d": _avg_pool2d,
    "max_pool2d": _max_pool2d,
    "relu": _activation,
    "relu6": _activation,
    "pad": _pad,
    "reshape": _reshape,
    "flatten_nchw": _flatten_nchw,
}
