"""A graph as one file: safetensors with the constants, and the graph as JSON in its header.

The header names every tensor and op; to read it takes neither torch nor our Python. A reader
checks every field and every rule of `verify`, so that what is loaded can be
trusted. An int8 graph brings the float graph that it was made from, whose constants are named
`float/...`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from safetensors import SafetensorError
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from fedkit.core.errors import ExportError
from fedkit.core.files import read_whole, write_atomic
from fedkit.graph import ir
from fedkit.graph.ops.registry import SPECS
from fedkit.graph.verify import verify

VERSION = 5
"""Version of a file with guards. One with several outputs, or one that is a series, is of version
4. Else one with attributes of ops is of version 3, one without of version 2. 1 had no origin. All
are read; a reader refuses others.
"""

_KEY = "graph"
_FLOATS = "float/"  # before the names of the float graph's constants
_AGAIN = "export the model again, or restore the file"
_HEADER = 8  # bytes of the header's length, which a safetensors file begins with

_Size = Annotated[int, Field(ge=1, le=2**20)]
_Amount = Annotated[int, Field(ge=0, le=2**20)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_strict = with_config(ConfigDict(strict=True, extra="forbid"))


@_strict
@dataclass(frozen=True)
class _Quantization:
    scale: tuple[_Finite, ...]
    zero_point: tuple[int, ...]
    axis: Annotated[int, Field(ge=0, le=3)] | None


@_strict
@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: Annotated[tuple[_Size, ...], Field(min_length=1, max_length=4)]
    dtype: ir.DType
    quantization: _Quantization | None
    constant: bool


@_strict
@dataclass(frozen=True)
class _Window:
    kernel: tuple[_Size, _Size]
    stride: tuple[_Size, _Size]
    dilation: tuple[_Size, _Size]
    padding: tuple[_Amount, _Amount, _Amount, _Amount]


def _known(kind: str) -> str:
    if kind not in SPECS:
        raise ValueError(f"{kind!r} is no kind of op; these are: {', '.join(SPECS)}")
    return kind


@_strict
@dataclass(frozen=True)
class _Op:
    kind: Annotated[str, AfterValidator(_known)]
    inputs: Annotated[tuple[str, ...], Field(min_length=1, max_length=2**10)]
    outputs: Annotated[tuple[str, ...], Field(min_length=1, max_length=1)]
    window: _Window | None
    activation: ir.Activation
    source: str
    attributes: dict[str, Any] | None = None


@_strict
@dataclass(frozen=True)
class _Guard:
    low: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    high: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    centred: bool


@_strict
@dataclass(frozen=True)
class _Graph:
    """The fields of `fedkit.graph.ir.Graph`."""

    tensors: tuple[_Tensor, ...]
    ops: Annotated[tuple[_Op, ...], Field(min_length=1)]
    inputs: Annotated[tuple[str, ...], Field(min_length=1, max_length=1)]
    outputs: Annotated[tuple[str, ...], Field(min_length=1, max_length=2**10)]
    series: Annotated[tuple[str, ...], Field(max_length=2**10)] = ()
    guards: dict[str, _Guard] = field(default_factory=dict)


@_strict
@dataclass(frozen=True)
class _Origin:
    """The fields of `fedkit.graph.ir.Origin`."""

    floats: _Graph
    examples: Annotated[int, Field(ge=1)]
    noise: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    same_class: Annotated[float, Field(ge=0, le=1)]


@_strict
@dataclass(frozen=True, kw_only=True)
class _File(_Graph):
    """What the header says."""

    version: int
    origin: _Origin | None = None


def save_graph(graph: ir.Graph, path: Path) -> None:
    """Write a graph to a file, whole or not at all; the same graph gives the same bytes.

    Raises:
        ExportError: The graph breaks a rule of `verify`, or the file cannot be written.
    """
    verify(graph)
    try:
        write_atomic(path, to_bytes(graph))
    except OSError as error:
        raise ExportError(f"the graph cannot be written to {path}: {error.strerror}") from error


def load_graph(path: Path) -> ir.Graph:
    """Read a graph and check it.

    Raises:
        ExportError: There is no such file; it is cut off, altered or of another version; a field
            has a wrong value; or the graph breaks a rule of `verify`.
    """
    try:
        return from_bytes(read_whole(path))
    except OSError as error:
        raise ExportError(f"graph file {path} cannot be read: {error.strerror}") from error
    except ExportError as error:
        raise ExportError(f"graph file {path}: {error}") from error


def to_bytes(graph: ir.Graph) -> bytes:
    """Return what `save_graph` writes."""
    content: dict[str, Any] = {"version": _version(graph), **_content(graph)}
    data = _data(graph)
    if graph.origin is not None:
        content["origin"] = {
            "floats": _content(graph.origin.floats),
            "examples": graph.origin.examples,
            "noise": dict(graph.origin.noise),
            "same_class": graph.origin.same_class,
        }
        data |= {_FLOATS + name: each for name, each in _data(graph.origin.floats).items()}
    return to_safetensors(data, {_KEY: json.dumps(content)})


def _version(graph: ir.Graph) -> int:
    """Return the lowest version that can say what a graph is."""
    if graph.origin is not None and graph.origin.floats.guards:
        return 5
    if graph.series or len(graph.outputs) > 1:
        return 4
    return 3 if any(op.attributes for op in graph.ops) else 2


def _content(graph: ir.Graph) -> dict[str, Any]:
    guards = {name: asdict(guard) for name, guard in graph.guards.items()}
    return {
        "tensors": [_described(tensor) for tensor in graph.tensors.values()],
        "ops": [_op_described(op) for op in graph.ops],
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        **({"series": graph.series} if graph.series else {}),
        **({"guards": guards} if guards else {}),
    }


def _data(graph: ir.Graph) -> dict[str, ir.Array]:
    return {
        name: np.ascontiguousarray(tensor.data)
        for name, tensor in graph.tensors.items()
        if tensor.data is not None
    }


def from_bytes(data: bytes) -> ir.Graph:
    """Return the graph of a file's bytes; errors as for `load_graph`."""
    try:
        constants: Mapping[str, ir.Array] = from_safetensors(data)
        header = json.loads(data[_HEADER : _HEADER + int.from_bytes(data[:_HEADER], "little")])
        text = header["__metadata__"][_KEY]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(f"no graph, or cut off or altered ({error}); {_AGAIN}") from error
    return _whole(_checked(text), constants)


def _whole(file: _File, constants: Mapping[str, ir.Array]) -> ir.Graph:
    if file.origin is None:
        return _graph(file, constants)
    own = {name: data for name, data in constants.items() if not name.startswith(_FLOATS)}
    real = {name.removeprefix(_FLOATS): constants[name] for name in constants.keys() - own.keys()}
    graph, floats = _graph(file, own), _graph(file.origin.floats, real)
    ports = [
        [each.tensors[name].shape for name in (*each.inputs, *each.outputs)]
        for each in (floats, graph)
    ]
    if ports[0] != ports[1] or floats.tensors[floats.inputs[0]].dtype != "float32":
        raise ExportError(f"its float graph is not that of its integers; {_AGAIN}")
    noise = file.origin.noise
    for name in graph.outputs:
        if name not in noise:
            raise ExportError(f"it does not tell the noise of {name!r}; {_AGAIN}")
    origin = ir.Origin(floats, file.origin.examples, noise, file.origin.same_class)
    return replace(graph, origin=origin)


def _op_described(op: ir.Op) -> dict[str, Any]:
    fields = asdict(op)
    return {name: fields[name] for name in fields if name != "attributes" or fields[name]}


def _described(tensor: ir.Tensor) -> dict[str, Any]:
    quantization = tensor.quantization and asdict(tensor.quantization)
    return {
        "name": tensor.name,
        "shape": tensor.shape,
        "dtype": tensor.dtype,
        "quantization": quantization,
        "constant": tensor.data is not None,
    }


def _checked(text: str) -> _File:
    try:
        file = TypeAdapter(_File).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "graph"
        raise ExportError(f"{where}: {first['msg']}; {_AGAIN}") from error
    if file.version not in range(1, VERSION + 1):
        raise ExportError(f"version {file.version}, this program reads 1 to {VERSION}; {_AGAIN}")
    return file


def _graph(file: _Graph, constants: Mapping[str, ir.Array]) -> ir.Graph:
    names = [tensor.name for tensor in file.tensors]
    if len(set(names)) != len(names):
        raise ExportError(f"tensors have the same name; {_AGAIN}")
    described = {tensor.name for tensor in file.tensors if tensor.constant}
    if described != set(constants):
        odd = sorted(described ^ set(constants))[0]
        raise ExportError(f"constant {odd!r} is without data or without description; {_AGAIN}")
    ops = tuple(_op(op) for op in file.ops)
    tensors = {tensor.name: _tensor(tensor, constants) for tensor in file.tensors}
    guards = {name: ir.Guard(**asdict(each)) for name, each in file.guards.items()}
    ports = file.inputs, file.outputs
    graph = ir.Graph(tensors, ops, *ports, series=file.series, guards=guards)
    verify(graph)
    return graph


def _op(op: _Op) -> ir.Op:
    window = None if op.window is None else ir.Window(**asdict(op.window))
    attributes = None if op.attributes is None else _attributes(op, op.attributes)
    return ir.Op(op.kind, op.inputs, op.outputs, window, op.activation, op.source, attributes)


def _attributes(op: _Op, found: dict[str, Any]) -> ir.Attributes:
    kind = SPECS[op.kind].attributes
    if kind is None or found.keys() != {field.name for field in fields(kind)}:
        raise ExportError(f"op {op.kind} has attributes {sorted(found)}, not its own; {_AGAIN}")
    try:
        return TypeAdapter(kind).validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ExportError(f"op {op.kind}, {first['loc'][0]}: {first['msg']}; {_AGAIN}") from error


def _tensor(tensor: _Tensor, constants: Mapping[str, ir.Array]) -> ir.Tensor:
    how = tensor.quantization
    quantization = None if how is None else ir.Quantization(**asdict(how))
    data = constants.get(tensor.name)
    return ir.Tensor(tensor.name, tensor.shape, tensor.dtype, data, quantization)
