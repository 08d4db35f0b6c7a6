"""Turn a float ONNX file into a float graph: the reader for models that do not come from torch.

What an ONNX op becomes, the rows of `fedkit.graph.ops` say; here is what becomes no op. A shape is
what ONNX's own inference says of that node.
What is computed from constants alone (and from shapes, which are constants here) is evaluated by
ONNX's reference and becomes a constant itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import checker, defs, external_data_helper, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from fedkit.core.errors import ExportError
from fedkit.core.files import read_whole
from fedkit.graph import ir
from fedkit.graph.layouts import RANKS, graph_shape
from fedkit.graph.lowering import Lowering
from fedkit.graph.operands import Unsupported, activation, constant, number, require, require_small
from fedkit.graph.ops.registry import ONNX

_OPSETS = range(7, 29)
"""From the first in which operands broadcast as in numpy to the last that was looked at."""

_SMALL = 1024
"""Elements up to which a constant's values are shown to shape inference; it asks for few."""

_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QGemm")
_QUANTISED_ENDINGS = ("Integer", "IntegerToFloat")

Value = ir.Tensor | ir.Array


@dataclass(frozen=True)
class _Node:
    """A node with what is known of its operands."""

    proto: onnx.NodeProto
    inputs: tuple[Value | None, ...]
    shape: tuple[int, ...] | None
    """Of the first output, as the file has it; None if unknown before the model runs."""
    opset: int

    def attribute(self, name: str, default: Any) -> Any:
        found = (helper.get_attribute_value(a) for a in self.proto.attribute if a.name == name)
        value = next(found, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def operand(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def setting(self, name: str, index: int, default: Any = None) -> Any:
        value = self.operand(index)
        if value is None:
            return self.attribute(name, default)
        return constant(value, f"{name} values").ravel().tolist()


@dataclass
class _Lowering(Lowering[_Node]):
    """What has been lowered so far, by the names of the file."""

    opset: int = 0
    read: set[str] = field(default_factory=set)
    """Names of all values that some node, or the model's caller, reads."""

    values: dict[str, Value] = field(default_factory=dict)
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    small: dict[str, onnx.TensorProto] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    """What nothing is known of, because what computes it was refused."""

    def name_of(self, node: _Node) -> str:
        return str(node.proto.output[0])

    def source_of(self, node: _Node) -> str:
        return _source(node.proto)

    def shape_of(self, node: _Node) -> ir.Shape:
        if node.shape is None:
            raise Unsupported(
                "its shape depends on values that only a run would tell; only the batch dimension "
                "may be dynamic"
            )
        require(
            node.shape[:1] == (1,), f"a value of shape {node.shape}, without the batch in front"
        )
        return graph_shape(node.shape)

    def ranks_of(self, node: _Node) -> set[int]:
        named = zip(node.proto.input, node.inputs, strict=True)
        read = (name for name, operand in named if isinstance(operand, ir.Tensor))
        return {len(_dims(self.types[name]) or ()) for name in read}

    def bind(self, name: str, value: ir.Array) -> None:
        """Make a constant known."""
        self.values[name] = value
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.types[name] = helper.make_tensor_type_proto(kind, value.shape)
        if value.size <= _SMALL:
            self.small[name] = numpy_helper.from_array(value, name)


def lower(source: Path | str | bytes) -> ir.Graph:
    """Lower a float ONNX file to a float graph.

    Args:
        source: Path of an .onnx file, or its bytes. It has one input, float32 [n, channels, height,
            width], [n, channels, length] or [n, features], and one output; n is 1 or symbolic.

    Returns:
        A graph in the layouts of `ir` with batch 1, not yet optimised; it passes `verify`.

    Raises:
        ExportError: The file is missing, damaged, quantised already, or not such a model, or it
            holds unsupported ops, or such as mix the examples of a symbolic batch; all are listed.
    """
    model = _read(source)
    _refuse_quantised(model)
    lowering = _Lowering(opset=_opset(model), read=_read_names(model))
    with _refusing("onnx refuses the file", "it is damaged, or newer than the installed onnx"):
        checker.check_model(model)
    name = _bind(model, lowering)
    for node in model.graph.node:
        _lower_node(lowering, node)
    lowering.raise_diagnostics()
    lowering.diagnostics.extend(_mixing(model, lowering))
    lowering.raise_diagnostics()
    return lowering.graph((name,), lowering.values[model.graph.output[0].name])


# The file


@contextmanager
def _refusing(what: str, remedy: str) -> Iterator[None]:
    """Turn any error inside, of the libraries' many classes, into one of ours."""
    try:
        yield
    except (ExportError, Unsupported):
        raise
    except Exception as error:
        raise ExportError(f"{what}: {_first_line(error)}; {remedy}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read(source: Path | str | bytes) -> onnx.ModelProto:
    if isinstance(source, bytes):
        name, content = f"the model of {len(source)} bytes", source
    else:
        name = str(source)
        with _refusing(f"{name} cannot be read", "give the path of an .onnx file"):
            content = read_whole(Path(source))
    with _refusing(f"{name} is not an ONNX file, or is damaged", "export it again"):
        model = onnx.load_from_string(content)
    if not (model.ir_version and model.HasField("graph") and _is_text(model.graph)):
        raise ExportError(
            f"{name} is not an ONNX file, or is damaged: it holds no model; export it again"
        )
    _load_external_data(model, None if isinstance(source, bytes) else Path(source).parent)
    return model


def _is_text(graph: onnx.GraphProto) -> bool:
    """Whether all names are strings, which protobuf does not see to."""
    named = (*graph.input, *graph.output, *graph.initializer)
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    names += [name for node in graph.node for name in (node.name, node.op_type, node.domain)]
    return all(isinstance(name, str) for name in (*names, *(one.name for one in named)))


def _load_external_data(model: onnx.ModelProto, folder: Path | None) -> None:
    is_outside = external_data_helper.uses_external_data
    outside = [tensor for tensor in model.graph.initializer if is_outside(tensor)]
    if outside and folder is None:
        raise ExportError(
            f"the data of {', '.join(tensor.name for tensor in outside[:3])} are in another file, "
            f"which bytes alone do not tell; give the path of the .onnx file"
        )
    with _refusing("data outside the .onnx file cannot be read", "put their file beside it"):
        for tensor in outside:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]


def _refuse_quantised(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        operator = node.op_type
        is_integer = operator in _QUANTISED or operator.endswith(_QUANTISED_ENDINGS)
        if is_integer or operator.startswith("QLinear"):
            raise ExportError(
                f"the file is quantised already: it holds {operator}, node {_source(node)!r}; a "
                f"quantised file cannot be lowered again, give the float model it was made from"
            )


def _opset(model: onnx.ModelProto) -> int:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 1))
    if version not in _OPSETS:
        raise ExportError(
            f"the file is of opset {version}; opsets {_OPSETS[0]} to {_OPSETS[-1]} can be lowered: "
            f"export it again, or convert it with onnx.version_converter"
        )
    return int(version)


def _bind(model: onnx.ModelProto, lowering: _Lowering, batch: int = 1) -> str:
    """Make the input and the constants known; return the name of the input."""
    graph = model.graph
    if graph.sparse_initializer:
        raise ExportError("the file holds sparse tensors; export it with dense ones")
    for tensor in graph.initializer:
        with _refusing(f"constant {tensor.name!r} cannot be read", "export the file again"):
            lowering.bind(tensor.name, numpy_helper.to_array(tensor))
    inputs = [port for port in graph.input if port.name not in lowering.values]
    for ports, what in ((inputs, "inputs"), (graph.output, "outputs")):
        if len(ports) != 1:
            names = ", ".join(repr(port.name) for port in ports) or "none"
            raise ExportError(f"the model has {len(ports)} {what} ({names}); it must have one")
    name, shape = inputs[0].name, (batch, *_input_shape(inputs[0])[1:])
    lowering.values[name] = lowering.activation(name, graph_shape(shape))
    lowering.types[name] = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, shape)
    return str(name)


def _input_shape(port: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return the shape of the model's input with batch 1."""
    found = port.type.tensor_type
    if found.elem_type != onnx.TensorProto.FLOAT:
        types = onnx.TensorProto.DataType
        kind = types.Name(found.elem_type) if found.elem_type in types.values() else "unknown"
        raise ExportError(
            f"input {port.name!r} is of type {kind}; only float32 models can be lowered: export "
            f"the model in float32, before it is quantised or halved"
        )
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in found.shape.dim]
    if len(dims) not in RANKS:
        raise ExportError(
            f"input {port.name!r} has {len(dims)} dimensions; it must be [n, channels, height, "
            f"width], [n, channels, length] or [n, features]"
        )
    if dims[0] > 1:
        raise ExportError(
            f"input {port.name!r} has batch size {dims[0]}; a device sees one example at a time: "
            f"export the model with batch size 1 or a symbolic one"
        )
    if min(dims[1:]) < 1:
        named = [dim.dim_param or str(dim.dim_value or "?") for dim in found.shape.dim]
        raise ExportError(
            f"input {port.name!r} has the dynamic shape [{', '.join(named)}]; only the first "
            f"dimension, the batch, may be so: export the model with fixed sizes"
        )
    shape = (1, *dims[1:])
    if math.prod(shape) > ir.LARGEST_SIZE:
        raise ExportError(
            f"input {port.name!r} of shape {shape} has more than {ir.LARGEST_SIZE} values"
        )
    return shape


# A symbolic batch


def _mixing(model: onnx.ModelProto, one: _Lowering) -> Iterator[tuple[str, str]]:
    """Yield where and what keeps a file of symbolic batch from computing each example by itself.

    The graph is that of one example. With two of them the batch must come out in front of every
    value, and what else constants say must be the same.
    """
    two = _Lowering(opset=one.opset, read=one.read)
    ports = {port.name: port for port in model.graph.input}
    first = ports[_bind(model, two, batch=2)].type.tensor_type.shape.dim[0]
    if first.dim_value == 1:
        return
    for proto in model.graph.node:
        try:
            _follow(two, one, proto)
        except Unsupported as error:
            yield (
                f"node {_source(proto)!r}",
                f"{error}; the file leaves the batch open, and examples "
                f"must not mix: keep the batch in front, or export the model with batch size 1",
            )
            return  # what comes after it follows from it


def _follow(two: _Lowering, one: _Lowering, proto: onnx.NodeProto) -> None:
    """Note what a node gives for two examples; refuse it if that is not twice what it does."""
    operands = tuple(two.values[name] if name else None for name in proto.input)
    shape, name = _infer(two, proto), proto.output[0]
    if not any(isinstance(each, ir.Tensor) for each in operands):
        _fold(two, proto)
    elif proto.op_type == "Shape":
        two.bind(name, constant(_shape(two, _Node(proto, operands, shape, two.opset))))
    else:
        expected = _dims(one.types[name]) or ()
        require(
            shape == (2, *expected[1:]),
            f"{proto.op_type} gives {expected} for one example, {shape} for two",
        )
        _require_same_constants(two, one, proto)
        two.values[name] = ir.Tensor(name, shape or ())


def _require_same_constants(two: _Lowering, one: _Lowering, proto: onnx.NodeProto) -> None:
    for name in filter(None, proto.input):
        left, right = one.values[name], two.values[name]
        if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
            is_shape = proto.op_type == "Reshape"  # which has been compared
            same = is_shape or np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
            require(same, f"{proto.op_type} by {name!r}, which depends on the batch")


# Nodes


def _source(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type} -> {', '.join(node.output)}"


def _read_names(model: onnx.ModelProto) -> set[str]:
    """Return the names of all values that somebody reads."""
    read = {name for node in model.graph.node for name in node.input}
    return read | {port.name for port in model.graph.output}


def _lower_node(lowering: _Lowering, proto: onnx.NodeProto) -> None:
    """Lower one node; if that fails, note why and go on as if it had worked."""
    try:
        if lowering.unknown.isdisjoint(proto.input):
            with np.errstate(all="ignore"):  # `verify` names what is not finite
                _bind_outputs(lowering, proto)
        else:
            _require_no_graph(proto)
            _require_known(lowering, proto)
            lowering.unknown.update(filter(None, proto.output))
    except Unsupported as error:
        lowering.diagnostics.append((f"node {_source(proto)!r}", str(error)))
        _assume_outputs(lowering, proto)


def _assume_outputs(lowering: _Lowering, proto: onnx.NodeProto) -> None:
    """Let the outputs of a refused node have the shape they would have, as far as it is known."""
    for name in filter(None, proto.output):
        shape = _dims(lowering.types.get(name)) or ()
        if len(shape) in RANKS and shape[0] == 1:
            lowering.values[name] = ir.Tensor(name, graph_shape(shape))
        else:
            lowering.unknown.add(name)


def _bind_outputs(lowering: _Lowering, proto: onnx.NodeProto) -> None:
    is_constant = not any(
        isinstance(lowering.values[name], ir.Tensor) for name in filter(None, proto.input)
    )
    _require_no_graph(proto)
    shape = _infer(lowering, proto)
    if is_constant:
        _fold(lowering, proto)
        return
    _require_known(lowering, proto)
    require(
        lowering.read.isdisjoint(proto.output[1:]), f"{proto.op_type} with more than one output"
    )
    operands = tuple(lowering.values[name] if name else None for name in proto.input)
    value = _HANDLERS[proto.op_type](lowering, _Node(proto, operands, shape, lowering.opset))
    if isinstance(value, ir.Tensor):
        lowering.values[proto.output[0]] = value
    else:
        lowering.bind(proto.output[0], value)


def _require_no_graph(proto: onnx.NodeProto) -> None:
    holds_graph = any(a.HasField("g") or a.graphs for a in proto.attribute)
    require(
        not holds_graph,
        f"{proto.op_type} is control flow; the model must do the same for every input",
    )


def _require_known(lowering: _Lowering, proto: onnx.NodeProto) -> None:
    known = not proto.domain and proto.op_type in _HANDLERS
    name = f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type
    require(known, f"{name} is not supported")


def _infer(lowering: _Lowering, proto: onnx.NodeProto) -> tuple[int, ...] | None:
    """Note the types of a node's outputs; return the shape of the first, None if unknown."""
    positive = ("dilations", "kernel_shape", "strides")
    for attribute in proto.attribute:
        is_sane = attribute.name not in positive or min(attribute.ints, default=1) >= 1
        require(is_sane, f"{attribute.name} = {list(attribute.ints)}; they must be positive")
    try:
        schema = _schema(lowering, proto)
        found = shape_inference.infer_node_outputs(
            schema,
            proto,
            {name: lowering.types[name] for name in filter(None, proto.input)},
            {name: lowering.small[name] for name in proto.input if name in lowering.small},
            opset_imports=[helper.make_opsetid("", lowering.opset)],
        )
    except Unsupported:
        raise
    except Exception as error:  # the library's errors have no class in common
        raise Unsupported(f"{proto.op_type} is not valid: {_first_line(error)}") from error
    lowering.types.update(found)
    shape = _dims(found.get(proto.output[0]))
    require_small(shape or ())
    return shape


def _schema(lowering: _Lowering, proto: onnx.NodeProto) -> defs.OpSchema:
    try:
        return defs.get_schema(proto.op_type, lowering.opset, proto.domain)
    except defs.SchemaError:
        _require_known(lowering, proto)
        raise


def _dims(kind: onnx.TypeProto | None) -> tuple[int, ...] | None:
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    is_known = all(dim.HasField("dim_value") for dim in dims)
    return tuple(dim.dim_value for dim in dims) if is_known else None


def _fold(lowering: _Lowering, proto: onnx.NodeProto) -> None:
    """Evaluate a node that depends on constants alone."""
    is_random = _schema(lowering, proto).non_deterministic  # type: ignore[attr-defined]  # missing in its stub
    require(not is_random, f"{proto.op_type} of constants gives random values, or runs a graph")
    outputs = [name for name in proto.output if name in lowering.read]
    for name in outputs:
        is_known = _dims(lowering.types.get(name)) is not None
        require(is_known, f"{proto.op_type} of constants, whose size is unknown before it is run")
    names = sorted(set(filter(None, proto.input)))
    ports = {n: helper.make_value_info(n, lowering.types[n]) for n in (*names, *outputs)}
    graph = helper.make_graph(
        [proto], "fold", [ports[name] for name in names], [ports[name] for name in outputs]
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = ReferenceEvaluator(graph, opsets={"": lowering.opset})
            found = evaluator.run(None, {name: lowering.values[name] for name in names})
        for name, value in zip(outputs, found, strict=True):
            lowering.bind(name, np.asarray(value))
    except Exception as error:  # the reference documents no class
        raise Unsupported(f"{proto.op_type} of constants fails: {_first_line(error)}") from error


def _identity(lowering: _Lowering, node: _Node) -> ir.Tensor:
    require(not number(node, "training_mode", 2, False), "dropout that is on in evaluation")
    return activation(node.operand(0))


def _shape(lowering: _Lowering, node: _Node) -> ir.Array:
    """Return the shape as a constant, which it is for one example."""
    shape = _dims(lowering.types[node.proto.input[0]])
    require(shape is not None, "the shape of a value that has no shape before the model runs")
    ends = slice(node.attribute("start", 0), node.attribute("end", None))
    return np.array((shape or ())[ends], np.int64)


_HANDLERS: dict[str, Callable[[_Lowering, _Node], Value]] = {
    **ONNX,
    "Identity": _identity,
    "Dropout": _identity,
    "Shape": _shape,
}
