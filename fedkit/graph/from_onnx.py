"""Turn a float ONNX file into a float graph: the reader for models that do not come from torch.

What an ONNX op becomes, the rows of `fedkit.graph.ops` say; here is what becomes no op. A shape is
what ONNX's own inference says of that node.
What is computed from constants alone (and from shapes, which are constants here) is evaluated by
ONNX's reference and becomes a constant itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from fedkit.core.errors import ExportError
from fedkit.graph import ir, onnx_file, onnx_integers, onnx_norms
from fedkit.graph.arrange import arrange, can_be
from fedkit.graph.elements import Moved, whole
from fedkit.graph.file_integers import FileIntegers, Steps
from fedkit.graph.layouts import RANKS, graph_shape
from fedkit.graph.lowering import Lowering
from fedkit.graph.onnx_file import first_line, refusing
from fedkit.graph.onnx_file import source_of as _source
from fedkit.graph.onnx_integers import BYTES, MOVES
from fedkit.graph.operands import Unsupported, activation, constant, number, require, require_small
from fedkit.graph.ops.moves import require_axes
from fedkit.graph.ops.norms import read_spelt
from fedkit.graph.ops.registry import ONNX
from fedkit.graph.places import EXAMPLES_MOVE, one_of
from fedkit.graph.spelt_norms import SpeltNorm

_OPSETS = range(7, 29)
"""From the first in which operands broadcast as in numpy to the last that was looked at."""

_SMALL = 1024
"""Elements up to which a constant's values are shown to shape inference; it asks for few."""

_KEEP_TYPE = ("GroupNormalization",)
"""Operators that give what they read another value, of which ONNX infers nothing."""

_QUANTISED = ("DynamicQuantizeLinear", "QGemm")
_QUANTISED_ENDINGS = ("Integer", "IntegerToFloat")

Value = ir.Tensor | Moved | ir.Array


@dataclass(frozen=True)
class _Node:
    """A node with what is known of its operands."""

    proto: onnx.NodeProto
    inputs: tuple[Value | None, ...]
    shape: tuple[int, ...] | None
    """Of the first output, as the file has it; None if unknown before the model runs."""
    opset: int
    number: int = 0
    """Which of the outputs is read now."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of all outputs; () if unknown, or if a file says so."""

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
    read: Mapping[str, set[str]] = field(default_factory=dict)
    """Name of each value that is read -> the operators that do; the model's caller is ""."""

    values: dict[str, Value] = field(default_factory=dict)
    moved: dict[str, _Node] = field(default_factory=dict)
    """Value that no ops arrange yet -> the node that gives it."""

    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    small: dict[str, onnx.TensorProto] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    """What nothing is known of, because what computes it was refused."""

    refused: dict[int, str] = field(default_factory=dict)
    """Place of a node among all -> why it cannot be read."""

    steps: dict[str, Steps] = field(default_factory=dict)
    """Activation of integers, by its name in the file -> what they are worth."""

    integers: FileIntegers = field(default_factory=FileIntegers)
    norms: Mapping[Any, SpeltNorm] = field(default_factory=dict)
    """Last value of each norm that is spelt out -> that norm."""

    def name_of(self, node: _Node) -> str:
        return str(node.proto.output[node.number])

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

    def arranged(self, node: _Node) -> Moved:
        """See `ModelReader.arranged`: ONNX's reference moves numbers."""
        return _moved(self, node)

    def is_read_by(self, node: _Node, operator: str) -> bool:
        """Whether nothing but one operator reads what a node gives."""
        return self.read.get(self.name_of(node)) == {operator}

    def bind(self, name: str, value: ir.Array) -> None:
        """Make a constant known."""
        self.values[name] = value
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.types[name] = helper.make_tensor_type_proto(kind, value.shape)
        if value.size <= _SMALL:
            self.small[name] = numpy_helper.from_array(value, name)


@dataclass(frozen=True)
class OnnxModel:
    """What was read from a file.

    Attributes:
        graph: In the layouts of `ir` with batch 1, not yet optimised; it passes `verify`.
        integers: What the file says of integers, if it is quantised.
        model: What was read: the file, cut to the outputs that were asked for.
        ports: Name in the file of an input or output that is of bytes there -> what they are worth
            in the graph, where it is of float32.
    """

    graph: ir.Graph
    integers: FileIntegers
    model: onnx.ModelProto
    ports: Mapping[str, Steps]


def lower(
    source: onnx_file.Source,
    shapes: onnx_file.Shapes | None = None,
    outputs: Sequence[str] = (),
) -> ir.Graph:
    """Lower an ONNX file to a float graph.

    Args:
        source: Path of an .onnx file, or its bytes. Its inputs are float32, uint8 or int8, [n,
            channels, height, width], [n, channels, length] or [n, features]; n is 1 or symbolic.
            The graph takes bytes as float32 numbers: of inputs that the file dequantises at once,
            what comes of that.
        shapes: Of inputs that the file leaves open, by their names; see `onnx_file.prepare`.
        outputs: Names of the values to compute; by default the file's outputs.

    Returns:
        A graph in the layouts of `ir` with batch 1, not yet optimised; it passes `verify`. Of a
        file with QuantizeLinear and DequantizeLinear it is the float model between them.

    Raises:
        ExportError: The file is missing, damaged, of integer operators, or not such a model, or it
            holds unsupported ops, or such as mix the examples of a symbolic batch; all are listed.
    """
    return read(opened(source, shapes, outputs)).graph


def opened(
    source: onnx_file.Source,
    shapes: onnx_file.Shapes | None = None,
    outputs: Sequence[str] = (),
) -> onnx.ModelProto:
    """Read a file and look through it; arguments and errors as for `lower`, but for ops."""
    model = onnx_file.load(source)
    _opset(model)
    return onnx_file.prepare(model, shapes, outputs)


def read(model: onnx.ModelProto) -> OnnxModel:
    """Lower what `opened` returns; errors as for `lower`."""
    names, lowering = lowered(model)
    lowering.raise_diagnostics()
    lowering.diagnostics.extend(_mixing(model, lowering))
    lowering.raise_diagnostics()
    _arrange(lowering, [port.name for port in model.graph.output])
    lowering.raise_diagnostics()
    found = [
        (lowering.values[port.name], len(_dims(lowering.types[port.name]) or ()))
        for port in model.graph.output
    ]
    ports = (*onnx_file.open_inputs(model.graph), *model.graph.output)
    of_ports = {p.name: lowering.steps[p.name] for p in ports if p.name in lowering.steps}
    return OnnxModel(lowering.graph(names, found), lowering.integers, model, of_ports)


def lowered(model: onnx.ModelProto) -> tuple[tuple[str, ...], _Lowering]:
    """Lower every node that can be; return the names of the inputs, and what became of it."""
    _refuse_integer_operators(model)
    lowering = _Lowering(opset=_opset(model), read=_read_names(model))
    names = _bind(model, lowering)
    lowering.norms = onnx_norms.spelt(model, _reads(model), names)
    inner = frozenset[Any]().union(*(norm.inner for norm in lowering.norms.values()))
    for place, node in enumerate(model.graph.node):
        if node.output[0] in inner:
            _infer_inner(lowering, node, place)
        else:
            _lower_node(lowering, node, place)
    for port in model.graph.output:
        if not port.HasField("type") and port.name in lowering.types:
            port.type.CopyFrom(lowering.types[port.name])
    return names, lowering


# The file


def _refuse_integer_operators(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        operator = node.op_type
        is_integer = operator in _QUANTISED or operator.endswith(_QUANTISED_ENDINGS)
        if is_integer or operator.startswith("QLinear"):
            raise ExportError(
                f"the file is quantised already: it holds {operator}, node {_source(node)!r}; a "
                f"file of integer operators cannot be read, give the float model it was made from, "
                f"or one in QDQ form (QuantizeLinear and DequantizeLinear)"
            )


def _opset(model: onnx.ModelProto) -> int:
    told = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    if len(told) > 1:
        raise ExportError(f"the file is of the opsets {sorted(told)} at once; export it again")
    version = next(iter(told), 1)
    if version not in _OPSETS:
        raise ExportError(
            f"the file is of opset {version}; opsets {_OPSETS[0]} to {_OPSETS[-1]} can be lowered: "
            f"export it again, or convert it with onnx.version_converter"
        )
    return int(version)


def _bind(model: onnx.ModelProto, lowering: _Lowering, batch: int = 1) -> tuple[str, ...]:
    """Make the inputs and the constants known; return the names of the inputs."""
    graph = model.graph
    for tensor in graph.initializer:
        with refusing(f"constant {tensor.name!r} cannot be read", "export the file again"):
            lowering.bind(tensor.name, numpy_helper.to_array(tensor))
    inputs = onnx_file.open_inputs(graph)
    for ports, what in ((inputs, "inputs"), (graph.output, "outputs")):
        if not ports:
            raise ExportError(f"the model has no {what}; it must have one at least")
    for port in inputs:
        shape = _input_shape(port)
        first = port.type.tensor_type.shape.dim[0]
        shape = shape if first.dim_value == 1 else (batch, *shape[1:])
        kind, name = port.type.tensor_type.elem_type, port.name
        lowering.values[name] = lowering.activation(name, graph_shape(shape))
        lowering.types[name] = helper.make_tensor_type_proto(kind, shape)
        if kind in BYTES:
            onnx_integers.note_input(lowering, graph, name, kind)
    return tuple(port.name for port in inputs)


_INPUTS = {onnx.TensorProto.FLOAT, *BYTES}


def _input_shape(port: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return the shape of one of the model's inputs with batch 1."""
    found = port.type.tensor_type
    if found.elem_type not in _INPUTS:
        types = onnx.TensorProto.DataType
        kind = types.Name(found.elem_type) if found.elem_type in types.values() else "unknown"
        raise ExportError(
            f"input {port.name!r} is of type {kind}; only float32 models, and bytes as inputs, can "
            f"be lowered: export the model in float32, before it is halved"
        )
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in found.shape.dim]
    if len(dims) not in RANKS:
        raise ExportError(
            f"input {port.name!r} has {len(dims)} dimensions; it must be [n, channels, height, "
            f"width], [n, channels, length] or [n, features]"
        )
    if dims[0] > 1:
        given = "x".join(str(dim or "?") for dim in (1, *dims[1:]))
        raise ExportError(
            f"input {port.name!r} has batch size {dims[0]}; a device sees one example at a time: "
            f"export the model with batch size 1 or a symbolic one, or give --input-shape "
            f"{port.name}={given}"
        )
    if min(dims[1:]) < 1:
        named = [dim.dim_param or str(dim.dim_value or "?") for dim in found.shape.dim]
        given = "x".join(["1", *(str(dim or "?") for dim in dims[1:])])
        raise ExportError(
            f"input {port.name!r} has the dynamic shape [{', '.join(named)}]; only the first "
            f"dimension, the batch, may be so: give the sizes by --input-shape {port.name}={given} "
            f"with a number for each ?"
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
    _bind(model, two, batch=2)
    ports = onnx_file.open_inputs(model.graph)
    if all(port.type.tensor_type.shape.dim[0].dim_value == 1 for port in ports):
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
    elif proto.op_type in ("Shape", "Size"):
        read = _HANDLERS[proto.op_type](two, _Node(proto, operands, shape, two.opset))
        two.bind(name, constant(read))
    else:
        for each in filter(None, proto.output if proto.op_type in _SEVERAL else (name,)):
            expected, shape = (_dims(of.types.get(each)) or () for of in (one, two))
            moved = one.values.get(each)
            dim = moved.examples if isinstance(moved, Moved) else 0
            require(
                shape == (*expected[:dim], 2, *expected[dim + 1 :]),
                f"{proto.op_type} gives {expected} for one example, {shape} for two",
            )
            two.values[each] = ir.Tensor(each, shape)
        _require_same_constants(two, one, proto)


def _require_same_constants(two: _Lowering, one: _Lowering, proto: onnx.NodeProto) -> None:
    for name in filter(None, proto.input):
        left, right = one.values[name], two.values[name]
        if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
            is_shape = proto.op_type in ("Reshape", "Resize")  # whose results are compared
            is_value = proto.op_type in ("Concat", "Add", "Sub", "Mul") and left.shape[:1] == (1,)
            alike = np.repeat(left, 2, 0) if is_value and len(right) == 2 else left
            same = is_shape or np.array_equal(alike, right, equal_nan=left.dtype.kind == "f")
            require(same, f"{proto.op_type} by {name!r}, which depends on the batch")


# Nodes


def _read_names(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Return the name of each value that somebody reads -> the operators that do."""
    read: dict[str, set[str]] = {port.name: {""} for port in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            read.setdefault(name, set()).add(node.op_type)
    return read


def _reads(model: onnx.ModelProto) -> Mapping[str, list[str]]:
    """Return name of each value that is read -> what nodes make of it; "" stands for the caller."""
    found: dict[str, list[str]] = {port.name: [""] for port in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node.output[0])
    return found


def _lower_node(lowering: _Lowering, proto: onnx.NodeProto, place: int) -> None:
    """Lower one node; if that fails, note why and go on as if it had worked."""
    if proto.op_type not in _ARRANGES and not _splits_moved(lowering, proto):
        _arrange(lowering, proto.input)
    try:
        if lowering.unknown.isdisjoint(proto.input):
            with np.errstate(all="ignore"):  # `verify` names what is not finite
                _bind_outputs(lowering, proto)
        else:
            _require_no_graph(proto)
            _require_known(lowering, proto)
            lowering.unknown.update(filter(None, proto.output))
    except Unsupported as error:
        _refuse(lowering, proto, place, error)


def _assume_outputs(lowering: _Lowering, proto: onnx.NodeProto) -> None:
    """Let the outputs of a refused node have the shape they would have, as far as it is known."""
    for name in filter(None, proto.output):
        shape = _dims(lowering.types.get(name)) or ()
        if len(shape) in RANKS and shape[0] == 1:
            lowering.values[name] = ir.Tensor(name, graph_shape(shape))
        else:
            lowering.unknown.add(name)


def _splits_moved(lowering: _Lowering, proto: onnx.NodeProto) -> bool:
    """Whether a node gives parts of what no ops arrange as it is."""
    value = lowering.values.get(proto.input[0]) if proto.op_type in _SEVERAL else None
    return isinstance(value, Moved) and not _can_arrange(value)


def _infer_inner(lowering: _Lowering, proto: onnx.NodeProto, place: int) -> None:
    """Note the shape of a value within a norm that is spelt out, which nothing else reads."""
    try:
        _infer(lowering, proto)
        _assume_outputs(lowering, proto)
    except Unsupported as error:
        _refuse(lowering, proto, place, error)


def _refuse(lowering: _Lowering, proto: onnx.NodeProto, place: int, error: Unsupported) -> None:
    lowering.diagnostics.append((f"node {_source(proto)!r}", str(error)))
    lowering.refused[place] = str(error)
    _assume_outputs(lowering, proto)


def _bind_norm(lowering: _Lowering, proto: onnx.NodeProto, norm: SpeltNorm) -> None:
    """Read a norm that is spelt out, at its last node."""
    name = str(norm.x)
    _arrange(lowering, [name])
    shape, x = _infer(lowering, proto), activation(lowering.values[name])
    node = _Node(proto, tuple(lowering.values[each] for each in proto.input), shape, lowering.opset)
    _bind_value(lowering, node, proto.output[0], read_spelt(lowering, node, x, norm))


def _bind_outputs(lowering: _Lowering, proto: onnx.NodeProto) -> None:
    if (norm := lowering.norms.get(proto.output[0])) is not None:
        _bind_norm(lowering, proto, norm)
        return
    is_constant = not _activations(lowering, proto)
    _require_no_graph(proto)
    shape = _infer(lowering, proto)
    if is_constant:
        _fold(lowering, proto)
        onnx_integers.note_constants(lowering, proto)
        return
    _require_known(lowering, proto)
    several = proto.op_type in _SEVERAL
    require(
        several or lowering.read.keys().isdisjoint(proto.output[1:]),
        f"{proto.op_type} with more than one output",
    )
    _require_numbers(lowering, proto)
    operands = tuple(lowering.values[name] if name else None for name in proto.input)
    operands = onnx_integers.real_operands(lowering, proto, operands)
    shapes = tuple(_dims(lowering.types.get(name)) or () for name in proto.output)
    for place, name in enumerate(proto.output if several else proto.output[:1]):
        if several and name not in lowering.read:
            continue
        shape = shapes[place] if several else shape
        node = _Node(proto, operands, shape, lowering.opset, place, shapes)
        arranges = proto.op_type in _ARRANGES or isinstance(node.operand(0), Moved)
        read = _arranged if arranges else _HANDLERS[proto.op_type]
        _bind_value(lowering, node, name, read(lowering, node))
    onnx_integers.note_weights(lowering, proto, _source(proto))


def _activations(lowering: _Lowering, proto: onnx.NodeProto) -> list[str]:
    """Return the operands of a node that are no constants."""
    given = filter(None, proto.input)
    return [name for name in given if isinstance(lowering.values[name], ir.Tensor | Moved)]


def _bind_value(lowering: _Lowering, node: _Node, name: str, value: Value) -> None:
    if isinstance(value, Moved):
        lowering.values[name], lowering.moved[name] = value, node
    elif isinstance(value, ir.Tensor):
        onnx_integers.note_activation(lowering, name, value)
        lowering.values[name] = value
    else:
        lowering.bind(name, value)


def _arranged(lowering: _Lowering, node: _Node) -> Value:
    """Return what a node arranges anew: by an op of its own, or else as part of what follows."""
    if isinstance(node.operand(0), Moved):
        return _moved(lowering, node)
    ops, tensors = len(lowering.ops), len(lowering.tensors)
    try:
        return _HANDLERS[node.proto.op_type](lowering, node)
    except Unsupported as error:
        lowering.undo(ops, tensors)
        try:
            return _moved(lowering, node)
        except Unsupported:
            raise error from None


def _moved(lowering: _Lowering, node: _Node) -> Moved:
    """Return which elements a node gives, by trying it on their numbers."""
    name, x = node.proto.input[0], node.operand(0)
    shape = _dims(lowering.types[name]) or ()
    moved = x if isinstance(x, Moved) else whole(activation(x), shape[1:])
    require_axes(node)
    found = _tried(lowering, node, moved)
    if not _can_arrange(found) and _can_arrange(moved):
        _arrange(lowering, [name])  # so that each part of a chain is
        return _tried(lowering, node, whole(activation(lowering.values[name]), shape[1:]))
    return found


def _can_arrange(moved: Moved) -> bool:
    """Whether a value has dimensions of the graph, and ops arrange it."""
    is_in_front = moved.examples == 0
    return is_in_front and 1 + moved.numbers.ndim in RANKS and can_be(moved)


_OF_SIZES = ("Reshape", "Flatten")
"""Operators that may say how many examples there are."""


def _tried(lowering: _Lowering, node: _Node, moved: Moved) -> Moved:
    """Return what ONNX's reference makes of the numbers of two examples, which it keeps apart.

    An operator that may say that there is one is tried with one, which must be in front.
    """
    count = 1 if node.proto.op_type in _OF_SIZES else 2
    require(count > 1 or moved.examples == 0, EXAMPLES_MOVE)
    first, *others = node.proto.input
    given = {name: lowering.values[name] for name in filter(None, others)}
    given[first] = moved.of_several(count)
    ports = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in ((name, constant(value)) for name, value in given.items())
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)
        for name in node.proto.output
    ]
    graph = helper.make_graph([node.proto], "moved", ports, ends)
    try:
        outs: Any = ReferenceEvaluator(graph, opsets={"": lowering.opset}).run(None, given)
    except Exception as error:  # the reference documents no class
        raise Unsupported(f"{node.proto.op_type} fails: {first_line(error)}") from error
    found = np.asarray(outs[node.number], np.int64)
    require(found.size > 0, EXAMPLES_MOVE)
    return one_of(moved, found, count)


def _arrange(lowering: _Lowering, names: Iterable[str]) -> None:
    """Let the ops of a graph arrange values, if nothing has yet."""
    for name in names:
        moved = lowering.values.get(name)
        if not isinstance(moved, Moved) or name not in lowering.moved:  # or refused already
            continue
        node = lowering.moved.pop(name)
        try:
            require(moved.examples == 0, EXAMPLES_MOVE)
            lowering.shape_of(node)
            made = arrange(lowering, node, moved)
            _bind_value(lowering, node, name, made)
        except Unsupported as error:
            lowering.diagnostics.append((f"node {_source(node.proto)!r}", str(error)))
            _assume_outputs(lowering, node.proto)


def _require_no_graph(proto: onnx.NodeProto) -> None:
    holds_graph = any(a.HasField("g") or a.graphs for a in proto.attribute)
    require(
        not holds_graph,
        f"{proto.op_type} is control flow; the model must do the same for every input",
    )


def _require_known(lowering: _Lowering, proto: onnx.NodeProto) -> None:
    known = not proto.domain and proto.op_type in _HANDLERS
    require(known, f"{operator(proto)} is not supported")


def operator(proto: onnx.NodeProto) -> str:
    """Return what a node is called: its operator, with the domain if that is not ONNX's."""
    return f"{proto.domain}.{proto.op_type}" if proto.domain else str(proto.op_type)


def unknown_operators(model: onnx.ModelProto) -> dict[int, str]:
    """Return place of a node -> why no node of its name can be read, constants aside."""
    constants = {tensor.name for tensor in model.graph.initializer}
    refused = {}
    for place, node in enumerate(model.graph.node):
        if constants.issuperset(filter(None, node.input)):
            constants.update(node.output)
        elif node.domain or node.op_type not in _HANDLERS:
            refused[place] = f"{operator(node)} is not supported"
    return refused


def _require_numbers(lowering: _Lowering, proto: onnx.NodeProto) -> None:
    """Refuse what computes with other activations than of float32; bytes may be moved."""
    activations = _activations(lowering, proto)
    if proto.op_type in _OF_BYTES:
        return
    steps = {lowering.steps.get(name) for name in activations}
    moves = proto.op_type in MOVES and len(steps) == 1
    for name in activations:
        kind = lowering.types[name].tensor_type.elem_type
        is_right = kind == onnx.TensorProto.FLOAT or (kind in BYTES and moves)
        called = onnx.TensorProto.DataType.Name(kind) if not is_right else ""
        require(
            is_right,
            f"{proto.op_type} of an activation {name!r} of type {called}; cast it "
            f"to float32 before",
        )
    if moves and (known := steps.pop()):
        lowering.steps.update(dict.fromkeys(filter(None, proto.output), known))


def _infer(lowering: _Lowering, proto: onnx.NodeProto) -> tuple[int, ...] | None:
    """Note the types of a node's outputs; return the shape of the first, None if unknown."""
    positive = ("dilations", "kernel_shape", "strides")
    for attribute in proto.attribute:
        is_sane = attribute.name not in positive or min(attribute.ints, default=1) >= 1
        require(is_sane, f"{attribute.name} = {list(attribute.ints)}; they must be positive")
    try:
        found = _inferred(lowering, proto)
    except Unsupported:
        raise
    except Exception as error:  # the library's errors have no class in common
        raise Unsupported(f"{proto.op_type} is not valid: {first_line(error)}") from error
    lowering.types.update(found)
    shape = _dims(found.get(proto.output[0]))
    require_small(shape or ())
    return shape


def _inferred(lowering: _Lowering, proto: onnx.NodeProto) -> dict[str, onnx.TypeProto]:
    if not proto.domain and proto.op_type in _KEEP_TYPE and any(proto.input[:1]):
        return {proto.output[0]: lowering.types[proto.input[0]]}
    return shape_inference.infer_node_outputs(
        _schema(lowering, proto),
        proto,
        {name: lowering.types[name] for name in filter(None, proto.input)},
        {name: lowering.small[name] for name in proto.input if name in lowering.small},
        opset_imports=[helper.make_opsetid("", lowering.opset)],
    )


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
    _require_quick(lowering, proto)
    outputs = [name for name in proto.output if name in lowering.read]
    for name in outputs:
        is_known = _dims(lowering.types.get(name)) is not None
        require(is_known, f"{proto.op_type} of constants, whose size is unknown before it is run")
    if proto.op_type in ("QuantizeLinear", "DequantizeLinear"):
        _fold_integers(lowering, proto)
        return
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
        raise Unsupported(f"{proto.op_type} of constants fails: {first_line(error)}") from error


def _require_quick(lowering: _Lowering, proto: onnx.NodeProto) -> None:
    """Refuse what could take for ever though its result is small."""
    operands = [np.asarray(lowering.values[name]) for name in proto.input if name]
    require(all(each.dtype.kind not in "OSU" for each in operands), f"{proto.op_type} of text")
    count = sum(each.size for each in operands)
    if proto.op_type == "Einsum":
        count = math.prod(each.size for each in operands)
    most = ir.LARGEST_SIZE if proto.op_type in _QUICK else _MOST_OF_OTHERS
    require(
        count <= most,
        f"{proto.op_type} of constants of {count} values; {most} can be: compute it beforehand",
    )


_MOST_OF_OTHERS = 2**22
"""Values that an operator reads which does more with each than a few steps: a product, a sort."""

_QUICK = (
    *("Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Concat"),
    *("Split", "Slice", "Expand", "Tile", "Pad", "Gather", "Neg", "Abs", "Sqrt", "Reciprocal"),
    *("Add", "Sub", "Mul", "Div", "Pow", "Clip", "Relu", "Where", "Max", "Min"),
    *("QuantizeLinear", "DequantizeLinear"),
)


def _fold_integers(lowering: _Lowering, proto: onnx.NodeProto) -> None:
    """Evaluate a node between constants of float32 and of integers."""
    operands = [constant(lowering.values[name]) for name in proto.input if name]
    kind = lowering.types[proto.output[0]].tensor_type.elem_type
    is_known = (
        kind in _INPUTS and operands[0].dtype.kind in "iuf" and not operands[0].dtype.itemsize > 4
    )
    require(is_known, f"{proto.op_type} of constants of type {operands[0].dtype}")
    axis = next((a.i for a in proto.attribute if a.name == "axis"), 1)
    lowering.bind(proto.output[0], onnx_integers.fold(proto.op_type, operands, axis))


def _identity(lowering: _Lowering, node: _Node) -> ir.Tensor:
    require(not number(node, "training_mode", 2, False), "dropout that is on in evaluation")
    return activation(node.operand(0))


def _shape(lowering: _Lowering, node: _Node) -> ir.Array:
    """Return the shape as a constant, which it is for one example."""
    shape = _dims(lowering.types[node.proto.input[0]])
    require(shape is not None, "the shape of a value that has no shape before the model runs")
    ends = slice(node.attribute("start", 0), node.attribute("end", None))
    return np.array((shape or ())[ends], np.int64)


def _size(lowering: _Lowering, node: _Node) -> ir.Array:
    """Return how many elements a value has, as a constant."""
    return np.array(math.prod(_shape(lowering, node).tolist()), np.int64)


def _reshape(lowering: _Lowering, node: _Node) -> ir.Tensor | Moved:
    """Read a reshape; one to groups of channels, that a norm alone reads, is left to that."""
    x = node.operand(0)
    is_of_groups = isinstance(x, ir.Tensor) and len(node.shape or ()) == 3
    if is_of_groups and lowering.is_read_by(node, "InstanceNormalization"):
        return activation(x)
    return ONNX["Reshape"](lowering, node)


def _instance_norm(lowering: _Lowering, node: _Node) -> ir.Tensor | Moved:
    """Read a norm per channel; one of groups, as torch writes a group norm, is reshaped again."""
    x = activation(node.operand(0))
    is_of_groups = node.shape is not None and graph_shape(node.shape) != x.shape
    fits = not is_of_groups or lowering.is_read_by(node, "Reshape")
    require(fits, f"a norm of {node.shape}, which is not reshaped to what it was made of")
    return ONNX["InstanceNormalization"](lowering, node)


_HANDLERS: dict[str, Callable[[_Lowering, _Node], Value]] = {
    **ONNX,
    "InstanceNormalization": _instance_norm,
    "Reshape": _reshape,
    "Identity": _identity,
    "Dropout": _identity,
    "Cast": onnx_integers.read_cast,
    "QuantizeLinear": onnx_integers.read_quantize,
    "DequantizeLinear": onnx_integers.read_dequantize,
    "Size": _size,
    "Shape": _shape,
}

OPERATORS = frozenset(_HANDLERS)
"""What is read of activations; of constants every operator of ONNX can be evaluated."""

_ARRANGES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Gather")
"""Operators that compute nothing; a chain of them is tried as a whole where one is no op."""

_SEVERAL = ("Split",)
"""Operators whose outputs, all of them, are read one by one."""

_OF_BYTES = ("Cast", "QuantizeLinear", "DequantizeLinear", "Shape", "Size")
"""What knows what bytes are worth, or looks at no values."""
