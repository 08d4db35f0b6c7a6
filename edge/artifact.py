"""A file or folder for a device, and a manifest that says what it is and how it was made.

`model.tflite` has the manifest `model.tflite.json` beside it, a folder `manifest.json` in it. None
is ever overwritten. A manifest holds its own sha256 and that of what it describes: damage to either
is seen before anything is run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ExportError
from fedkit.core.files import read_whole, write_atomic
from fedkit.graph.ir import Inputs
from fedkit.graph.ops.embedding import check_tokens

_MANIFEST_VERSION = 2
_MANIFEST = "manifest.json"
_OWN_DIGEST = "manifest_sha256"
_MOST_BYTES = 2**30  # of an input, an output, an arena
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_PACKAGES = ("fedkit", "numpy", "torch", "flatbuffers", "ai-edge-litert", "onnx", "onnxruntime")

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Port:
    """An input or output of the model.

    Attributes:
        dtype: Of integers "int8", of an input of tokens "int32"; of files of others "float32".
        shape: As the file has it, with the batch dimension 1: maps, those that go in and those that
            come out, are NCHW in ONNX, else NHWC; a series is a map of height 1.
        scale: real = scale * (integer - zero_point).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int

    def quantize(self, values: Inputs) -> NDArray[Any]:
        """Return float32 values as int8, rounded to nearest, halves to even; tokens as int32.

        Raises:
            ExportError: Tokens are no whole numbers.
        """
        if self.dtype == "int32":
            check_tokens(values)
            return np.asarray(values, np.int32)
        with np.errstate(over="ignore"):  # it is beyond the largest integer then
            integers = np.rint(values / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(integers, -128, 127), np.int8)

    def dequantize(self, integers: NDArray[np.int8]) -> NDArray[np.float32]:
        """Return the float32 values that int8 values stand for."""
        real = self.scale * (integers.astype(np.float32) - self.zero_point)
        return np.asarray(real, np.float32)


@dataclass(frozen=True)
class Artifact:
    """A saved model and its manifest.

    Attributes:
        path: The file, its manifest beside it; or the folder, its manifest within.
        target: What it is for, for example "tflite".
        sha256: Of the file, in hexadecimal; of a folder's files with their names, one by one.
        size: Of the file or of all in the folder, in bytes.
        provenance: How the model was made, as the caller put it.
        versions: Package -> version that wrote the file.
        files: Names of what the folder was saved with; what else lies there does not count.
        details: What there is to say about this target alone: "rounding", runtime -> policy, and
            "activation_bytes", the least memory for activations, are always there; "float_error",
            a `edge.quantize.truth.Truth` on the calibration set, where the graph's float model is
            known; "series", names of outputs that are series in the model, where some are.
        measured: What was measured of it, as `record` put it.
    """

    path: Path
    target: str
    sha256: str
    size: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    provenance: Mapping[str, Any]
    versions: Mapping[str, str]
    files: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def detail(self, name: str, kind: type[Kind]) -> Kind:
        """Return one of the details.

        Raises:
            ExportError: The manifest has no entry of that name and type.
        """
        value = self.details.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ExportError(
                f"the manifest {manifest_path(self.path)} is damaged (its detail {name!r} is "
                f"{value!r:.60}, not of type {kind.__name__}); export the model again"
            )
        return value

    def count(self, name: str, most: int) -> int:
        """Return one of the details that is a number from 1 to `most`.

        Raises:
            ExportError: The manifest has no such entry.
        """
        value = self.detail(name, int)
        if not 1 <= value <= most:
            raise ExportError(
                f"the manifest {manifest_path(self.path)} is damaged (its detail {name!r} is "
                f"{value!r:.60}, not 1 to {most}); export the model again"
            )
        return value


def manifest_path(path: Path) -> Path:
    """Return where the manifest of an artifact lies."""
    return path / _MANIFEST if path.is_dir() else path.with_name(path.name + ".json")


def save(
    content: bytes,
    path: Path,
    *,
    target: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    provenance: Mapping[str, Any],
    details: Mapping[str, Any],
) -> Artifact:
    """Write an artifact and its manifest; each appears complete or not at all.

    Args:
        content: The file.
        path: Where to put it; the folder is made if need be.
        target: What it is for.
        inputs: The model's inputs.
        outputs: The model's outputs.
        provenance: How the model was made; must be JSON.
        details: What there is to say about this target alone; must be JSON.

    Raises:
        ExportError: Something is at `path` already, or `provenance` is not JSON.
    """
    check_free(path)
    digest = hashlib.sha256(content).hexdigest()
    result = Artifact(
        path,
        target,
        digest,
        len(content),
        tuple(inputs),
        tuple(outputs),
        dict(provenance),
        _versions(),
        details=dict(details),
    )
    manifest = _to_json(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    write_atomic(manifest_path(path), manifest.encode())
    return result


def save_folder(
    files: Mapping[str, bytes],
    path: Path,
    *,
    target: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    provenance: Mapping[str, Any],
    details: Mapping[str, Any],
) -> Artifact:
    """Write a folder with its manifest, complete or not at all.

    Args:
        files: Name -> content.
        path: The folder to make.
        target: As the following, see `save`.
        inputs: The model's inputs.
        outputs: The model's outputs.
        provenance: How the model was made; must be JSON.
        details: What there is to say about this target alone; must be JSON.

    Raises:
        ExportError: Something is at `path` already, or `provenance` is not JSON.
    """
    check_free(path)
    names = tuple(sorted(files))
    content = _joined({name: files[name] for name in names})
    result = Artifact(
        path,
        target,
        hashlib.sha256(content).hexdigest(),
        sum(map(len, files.values())),
        tuple(inputs),
        tuple(outputs),
        dict(provenance),
        _versions(),
        names,
        dict(details),
    )
    manifest = _to_json(result).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.mkdir(parents=True)
    try:
        for name, data in (*files.items(), (_MANIFEST, manifest)):
            (temporary / name).write_bytes(data)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return result


def _joined(files: Mapping[str, bytes]) -> bytes:
    """Return names and contents in a row, each with its length: none passes for another."""
    parts = (part for name, data in files.items() for part in (name.encode(), data))
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def record(artifact: Artifact, measured: Mapping[str, Any]) -> Artifact:
    """Put into the manifest what was measured of an artifact; must be JSON."""
    result = replace(artifact, measured=dict(measured))
    write_atomic(manifest_path(artifact.path), _to_json(result).encode())
    return result


def check_free(path: Path) -> None:
    """Raise an ExportError if an artifact or a manifest is at `path` already."""
    for taken in (path, manifest_path(path)):
        if taken.exists():
            raise ExportError(
                f"{taken} exists already and artifacts are never overwritten; choose another path "
                f"or remove {path} and {manifest_path(path)} first"
            )


def load(path: Path, changed: bool = False) -> Artifact:
    """Read a manifest and check that the file or folder is the one it describes.

    Args:
        path: The file or folder.
        changed: Take it even if it is not, for users who changed it on purpose.

    Raises:
        ExportError: The file or manifest is missing or unreadable, or the file has changed.
    """
    path = Path(path)
    if os.path.isdir(path):  # False for a name that is too long, where pathlib raises
        result = _from_json(path, _read(manifest_path(path), "manifest"))
        _files(result, changed)
    else:
        content = _read(path, "artifact")
        result = _from_json(path, _read(manifest_path(path), "manifest"))
        _check_content(result, content, len(content), changed)
    return result


def unpack(artifact: Artifact, folder: Path, changed: bool = False) -> None:
    """Copy the files of an artifact that is a folder, and nothing that lies beside them.

    What is compiled is compiled there: neither a header that somebody has added, nor what was
    written since it was checked, takes part.

    Raises:
        ExportError: A file cannot be read, or has changed and `changed` is False.
    """
    for name, content in _files(artifact, changed).items():
        (folder / name).write_bytes(content)


def ports(artifact: Artifact) -> tuple[Port, tuple[Port, ...]]:
    """Return the one input and the outputs that C and Verilog have.

    Raises:
        ExportError: The manifest has others, or they are not int8; an input of tokens is int32.
    """
    every = (*artifact.inputs, *artifact.outputs)
    of_inputs, of_outputs = (
        {each.dtype for each in some} for some in (artifact.inputs, artifact.outputs)
    )
    is_integer = of_inputs in ({"int8"}, {"int32"}) and of_outputs == {"int8"}
    if len(artifact.inputs) != 1 or not is_integer:
        raise ExportError(
            f"the manifest {manifest_path(artifact.path)} is damaged (it does not have one int8 "
            "input, and int8 outputs); export the model again"
        )
    return every[0], every[1:]


def _files(artifact: Artifact, changed: bool) -> dict[str, bytes]:
    files = {name: _read(artifact.path / name, "artifact's file") for name in artifact.files}
    _check_content(artifact, _joined(files), sum(map(len, files.values())), changed)
    return files


def _check_content(artifact: Artifact, content: bytes, size: int, changed: bool) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if not changed and (size != artifact.size or digest != artifact.sha256):
        raise ExportError(
            f"{artifact.path} is not the file its manifest describes: it has {size} bytes and "
            f"sha256 {digest[:12]}, the manifest says {artifact.size} bytes and "
            f"{artifact.sha256[:12]}; copy or export it again, or take it as it is with --changed"
        )


def _read(path: Path, what: str) -> bytes:
    try:
        return read_whole(path)
    except OSError as error:
        raise ExportError(
            f"cannot read the {what} {path}: {error.strerror}; an artifact is a file and its "
            f"manifest (the same name with .json added): copy both"
        ) from error


def _to_json(artifact: Artifact) -> str:
    fields = {"manifest_version": _MANIFEST_VERSION, **asdict(artifact), "path": artifact.path.name}
    try:
        return json.dumps({**fields, _OWN_DIGEST: _digest(fields)}, indent=2) + "\n"
    except TypeError as error:
        raise ExportError(f"the provenance cannot be written as JSON: {error}") from error


def _digest(fields: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(fields))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _from_json(path: Path, text: bytes) -> Artifact:
    try:
        fields = dict(json.loads(text))
        said = fields.pop(_OWN_DIGEST)
        if said != (found := _digest(fields)):
            raise ValueError(f"its sha256 is {found[:12]}, and it says {str(said)[:12]}")
        return Artifact(
            path,
            _of(str, fields["target"]),
            _of(str, fields["sha256"]),
            _of(int, fields["size"]),
            tuple(_port(port) for port in fields["inputs"]),
            tuple(_port(port) for port in fields["outputs"]),
            _of(dict, fields["provenance"]),
            _of(dict, fields["versions"]),
            tuple(_file_name(name) for name in fields["files"]),
            _of(dict, fields["details"]),
            _of(dict, fields["measured"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(
            f"the manifest {manifest_path(path)} is damaged ({error}); export the model again"
        ) from error


def _of(kind: type[Kind], value: Any) -> Kind:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{value!r:.60} is not of type {kind.__name__}")
    return value


def _file_name(name: Any) -> str:
    """Return the name of a file in the folder; a path would lead out of it."""
    if not _FILE_NAME.fullmatch(_of(str, name)):
        raise ValueError(f"{name!r:.60} is not a plain file name")
    return str(name)


def _port(fields: Mapping[str, Any]) -> Port:
    port = Port(**{**fields, "shape": tuple(_of(int, size) for size in fields["shape"])})
    _of(str, port.name), _of(str, port.dtype), _of(int, port.zero_point), _of(float, port.scale)
    if port.dtype not in ("int8", "int32", "float32") or not 1 <= len(port.shape) <= 4:
        raise ValueError(f"no port has dtype {port.dtype!r:.60} and {len(port.shape)} dimensions")
    if min(port.shape) < 1 or math.prod(port.shape) > _MOST_BYTES:
        raise ValueError(f"no port has shape {port.shape}")
    if not (math.isfinite(port.scale) and port.scale >= 0 and -128 <= port.zero_point <= 127):
        raise ValueError(f"no port has scale {port.scale} and zero point {port.zero_point:.0f}")
    return port


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
