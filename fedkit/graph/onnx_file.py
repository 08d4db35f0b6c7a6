"""ONNX files as people have them: read, looked through and cut to what is asked for.

A file may be a stranger's. What is wrong with one as a whole (it is cut off, its data lie
elsewhere, two values have one name, a node reads what nobody writes) is said here in one line,
before any op is looked at.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import NoReturn

import onnx
from onnx import external_data_helper

from fedkit.core.errors import ExportError
from fedkit.core.files import read_whole
from fedkit.graph import ir
from fedkit.graph.operands import Unsupported

_INITIALISERS_ALONE = 4
_NEW_GROUP_NORM = 21
_ONNX = ("", "ai.onnx")

Source = Path | str | bytes
"""Path of an .onnx file, or its bytes."""

Shapes = Mapping[str, Sequence[int]]
"""Name of an input -> the shape that it is to have, batch in front; "" where there is one input."""


def load(source: Source) -> onnx.ModelProto:
    """Read a file, data that lie beside it included.

    Args:
        source: The file; data outside are looked for in its folder alone.

    Raises:
        ExportError: It is missing, damaged or no ONNX file; or its data are missing, elsewhere than
            in its folder, or shorter than it says.
    """
    name = f"the model of {len(source)} bytes" if isinstance(source, bytes) else str(source)
    if isinstance(source, bytes):
        content = source
    else:
        with refusing(f"{name} cannot be read", "give the path of an .onnx file"):
            content = read_whole(Path(source))
    with refusing(f"{name} is not an ONNX file, or is damaged", "export it again"):
        model = onnx.load_from_string(content)
    if not (model.ir_version and model.HasField("graph") and _is_text(model.graph)):
        raise ExportError(
            f"{name} is not an ONNX file, or is damaged: it holds no model; export it again"
        )
    if model.functions:
        raise ExportError(
            f"{name} holds functions of its own, as {model.functions[0].name!r}; put their nodes "
            "in their place: onnx.inliner.inline_local_functions does it"
        )
    if model.graph.sparse_initializer:
        raise ExportError(f"{name} holds sparse tensors; export it with dense ones")
    _load_external_data(model, None if isinstance(source, bytes) else Path(source).parent)
    return model


def prepare(
    model: onnx.ModelProto, shapes: Shapes | None = None, outputs: Sequence[str] = ()
) -> onnx.ModelProto:
    """Return a model cut to some outputs, with shapes given to its inputs.

    Args:
        model: As `load` returns it; it is not changed.
        shapes: Of inputs; what the file itself fixes can only be said again, but for the batch.
        outputs: Names of any values that nodes write; what only others need is left out. None of
            them: the file's own.

    Raises:
        ExportError: Names or shapes are not the file's, two values have one name, or a node reads
            what nothing gives, or what depends on itself.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    # Older formats want initialisers among the inputs; no runtime insists on it.
    made.ir_version = max(made.ir_version, _INITIALISERS_ALONE)
    _check_names(made.graph)
    _order(made.graph)
    for name, shape in (shapes or {}).items():
        _give_shape(made.graph, name, tuple(shape))
    with refusing("onnx refuses the file", "it is damaged, or newer than the installed onnx"):
        onnx.checker.check_model(_without_deprecated(made))
    if outputs:
        _cut(made.graph, outputs)
    return made


def _without_deprecated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model to be checked: a GroupNormalization before opset 21 would be refused.

    It is deprecated since its scales changed, and means what it did; an InstanceNormalization,
    which takes the same operands, stands for it.
    """
    opset = max((each.version for each in model.opset_import if each.domain in _ONNX), default=0)
    old = "GroupNormalization"
    if opset >= _NEW_GROUP_NORM or all(node.op_type != old for node in model.graph.node):
        return model
    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    for node in checked.graph.node:
        if node.op_type == old:
            node.op_type = "InstanceNormalization"
            del node.attribute[:]
    return checked


def source_of(node: onnx.NodeProto) -> str:
    """Return what messages call a node."""
    return node.name or f"{node.op_type} -> {', '.join(node.output)}"


def open_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that no initialiser fills, as files of older formats list them all."""
    given = {tensor.name for tensor in graph.initializer}
    return [port for port in graph.input if port.name not in given]


@contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Turn any error inside, of the libraries' many classes, into one of ours."""
    try:
        yield
    except (ExportError, Unsupported):
        raise
    except Exception as error:
        raise ExportError(f"{what}: {first_line(error)}; {remedy}") from error


def first_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _is_text(graph: onnx.GraphProto) -> bool:
    """Whether all names are strings, which protobuf does not see to."""
    named = (*graph.input, *graph.output, *graph.initializer)
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    names += [name for node in graph.node for name in (node.name, node.op_type, node.domain)]
    return all(isinstance(name, str) for name in (*names, *(one.name for one in named)))


# Data in other files


def _load_external_data(model: onnx.ModelProto, folder: Path | None) -> None:
    is_outside = external_data_helper.uses_external_data
    for node in model.graph.node:
        if any(is_outside(a.t) for a in node.attribute if a.HasField("t")):
            raise ExportError(
                f"node {source_of(node)!r} has its data in another file; initialisers alone can: "
                "export the file again"
            )
    outside = [tensor for tensor in model.graph.initializer if is_outside(tensor)]
    if outside and folder is None:
        raise ExportError(
            f"the data of {', '.join(tensor.name for tensor in outside[:3])} are in another file, "
            f"which bytes alone do not tell; give the path of the .onnx file"
        )
    files: dict[str, bytes] = {}
    with refusing("data outside the .onnx file cannot be read", "put their file beside it"):
        for tensor in outside:
            _load_tensor(tensor, folder or Path(), files)


def _load_tensor(tensor: onnx.TensorProto, folder: Path, files: dict[str, bytes]) -> None:
    about = {entry.key: entry.value for entry in tensor.external_data}
    location = about.get("location", "")
    path = folder / location
    if not location or not path.resolve().is_relative_to(folder.resolve()):
        raise ExportError(
            f"the data of constant {tensor.name!r} are said to be in {location!r}, which is not in "
            "the folder of the .onnx file; put them there, and export the file again"
        )
    content = files[location] = files.get(location) or read_whole(path)
    first = int(about.get("offset", 0))
    count = int(about.get("length", len(content) - first))
    if first < 0 or count < 0 or first + count > len(content):
        raise ExportError(
            f"the data of constant {tensor.name!r} are said to be {count} bytes from {first} on of "
            f"{location!r}, which holds {len(content)}; export the file again"
        )
    tensor.raw_data = content[first : first + count]
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


# Names and order


def _check_names(graph: onnx.GraphProto) -> None:
    initialisers = [tensor.name for tensor in graph.initializer]
    inputs = [port.name for port in graph.input]
    written = [name for node in graph.node for name in node.output if name]
    given = dict.fromkeys((*initialisers, *inputs))
    for names in (initialisers, inputs, [*given, *written]):
        name, times = max(Counter(names).items(), key=lambda each: each[1], default=("", 0))
        if times > 1:
            raise ExportError(
                f"the file has {times} values called {name!r}; each value needs a name of its own: "
                "export the file again"
            )


def _order(graph: onnx.GraphProto) -> None:
    """Bring nodes into an order in which they can run; refuse a file that has none."""
    known = {one.name for one in (*graph.initializer, *graph.input)}
    order = _runnable(graph.node, known)
    if len(order) < len(graph.node):
        can_run = set(order)
        _refuse_order([node for at, node in enumerate(graph.node) if at not in can_run], known)
    if order != sorted(order):
        _keep(graph.node, [graph.node[at] for at in order])
    for port in graph.output:
        if port.name not in known:
            raise ExportError(
                f"the file's output {port.name!r} is computed by no node; choose one that is by "
                "--output NAME, or export the file again"
            )


def _runnable(nodes: Sequence[onnx.NodeProto], known: set[str]) -> list[int]:
    """Return which nodes can run, each after all that it reads; `known` grows by their outputs."""
    missing = [{name for name in node.input if name and name not in known} for node in nodes]
    readers: dict[str, list[int]] = {}
    for at, names in enumerate(missing):
        for name in names:
            readers.setdefault(name, []).append(at)
    ready, order = [at for at, names in enumerate(missing) if not names], []
    heapify(ready)
    while ready:
        at = heappop(ready)
        order.append(at)
        known.update(filter(None, nodes[at].output))
        for name in nodes[at].output:
            for reader in readers.pop(name, ()):
                missing[reader].discard(name)
                if not missing[reader]:
                    heappush(ready, reader)
    return order


def _refuse_order(late: Sequence[onnx.NodeProto], known: set[str]) -> NoReturn:
    written = {name for node in late for name in node.output} | known
    for node in late:
        for name in node.input:
            if name and name not in written:
                raise ExportError(
                    f"node {source_of(node)!r} reads {name!r}, which nothing in the file gives; "
                    "export the file again"
                )
    raise ExportError(
        f"node {source_of(late[0])!r} depends on its own result: nodes of the file go in a circle; "
        "export the file again"
    )


def _cut(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    written = {name: node for node in graph.node for name in node.output if name}
    for name in outputs:
        if name not in written:
            own = ", ".join(repr(port.name) for port in graph.output[:8])
            raise ExportError(
                f"output is {name!r}, and no node of the file writes a value of that name; its "
                f"outputs are {own or 'none'}"
            )
    needed, waiting = set[str](), list(outputs)
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        waiting.extend(written[name].input if name in written else ())
    kept = [node for node in graph.node if not needed.isdisjoint(node.output)]
    known = {port.name: port for port in (*graph.value_info, *graph.output)}
    ports = [known.get(name) or onnx.ValueInfoProto(name=name) for name in outputs]
    _keep(graph.node, kept)
    _keep(graph.output, ports)
    _keep(graph.input, [port for port in graph.input if port.name in needed])
    _keep(graph.initializer, [each for each in graph.initializer if each.name in needed])


def _keep(field: object, kept: Sequence[object]) -> None:
    """Leave those in a repeated field, which lets go of what is deleted."""
    copies = [type(each).FromString(each.SerializeToString()) for each in kept]  # type: ignore[attr-defined]
    del field[:]  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]


# Shapes


def _give_shape(graph: onnx.GraphProto, name: str, shape: tuple[int, ...]) -> None:
    ports = open_inputs(graph)
    names = ", ".join(repr(port.name) for port in ports) or "none"
    found = ports if not name and len(ports) == 1 else [p for p in ports if p.name == name]
    if not found:
        what = f"no input is called {name!r}" if name else f"there are {len(ports)} inputs"
        raise ExportError(
            f"input-shape {_shown(shape)}: {what}; give NAME={_shown(shape)} with one of the "
            f"file's inputs: {names}"
        )
    (port,) = found
    _check_shape(port, shape)
    port.type.tensor_type.ClearField("shape")
    for size in shape:
        port.type.tensor_type.shape.dim.add().dim_value = size


def _check_shape(port: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    stated, given = port.type.tensor_type, f"input-shape {port.name}={_shown(shape)}"
    if not shape or min(shape) < 1 or math.prod(shape) > ir.LARGEST_SIZE:
        raise ExportError(
            f"{given}: sizes must be positive, and {ir.LARGEST_SIZE} values at most all together"
        )
    if shape[0] != 1:
        raise ExportError(
            f"{given}: the batch in front is {shape[0]}; a device sees one example at a time: give "
            f"{_shown((1, *shape[1:]))}"
        )
    if not stated.HasField("shape"):
        return
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in stated.shape.dim]
    fits = len(dims) == len(shape) and all(
        dim in (0, size) for dim, size in zip(dims[1:], shape[1:], strict=False)
    )
    if not fits:
        own = _shown([dim or "?" for dim in dims])
        raise ExportError(
            f"{given}: the file says {own}; a size that the file leaves open, and the batch, alone "
            "can be chosen"
        )


def _shown(shape: Sequence[int | str]) -> str:
    return "x".join(map(str, shape)) or "of no size"
