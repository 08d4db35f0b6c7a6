"""A file or folder for a device, and a manifest that says what it is and how it was made.

`model.tflite` has the manifest `model.tflite.json` beside it, a folder `manifest.json` in it. None
is ever overwritten. A manifest holds its own sha256 and that of what it describes: damage to either
is seen before anything is run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.errors import ExportError
from fedkit.files import read_whole, write_whole

_MANIFEST_VERSION = 2
_MANIFEST = "manifest.json"
_OWN_DIGEST = "manifest_sha256"
_PACKAGES = ("fedkit", "numpy", "torch", "flatbuffers", "ai-edge-litert", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Port:
    """An input or output of the model.

    Attributes:
        shape: As the file has it, with the batch dimension 1: images are NCHW in ONNX, else NHWC.
        scale: real = scale * (integer - zero_point).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int

    def quantize(self, values: NDArray[np.float32]) -> NDArray[np.int8]:
        """Return float32 values as int8, rounded to nearest, halves to even."""
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
            "activation_bytes", the least memory for activations, are always there.
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
    write_whole(path, content)
    write_whole(manifest_path(path), manifest.encode())
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
    write_whole(manifest_path(artifact.path), _to_json(result).encode())
    return result


def check_free(path: Path) -> None:
    """Raise an ExportError if an artifact or a manifest is at `path` already."""
    for taken in (path, manifest_path(path)):
        if taken.exists():
            raise ExportError(
                f"{taken} exists already and artifacts are never overwritten; choose another path "
                f"or remove {path} and {manifest_path(path)} first"
            )


def load(path: Path) -> Artifact:
    """Read a manifest and check that the file or folder is the one it describes.

    Raises:
        ExportError: The file or manifest is missing or unreadable, or the file has changed.
    """
    path = Path(path)
    if os.path.isdir(path):  # False for a name that is too long, where pathlib raises
        result = _from_json(path, _read(manifest_path(path), "manifest"))
        files = {name: _read(path / name, "artifact's file") for name in result.files}
        content, size = _joined(files), sum(map(len, files.values()))
    else:
        content = _read(path, "artifact")
        result, size = _from_json(path, _read(manifest_path(path), "manifest")), len(content)
    digest = hashlib.sha256(content).hexdigest()
    if size != result.size or digest != result.sha256:
        raise ExportError(
            f"{path} is not the file its manifest describes: it has {size} bytes and "
            f"sha256 {digest[:12]}, the manifest says {result.size} bytes and "
            f"{result.sha256[:12]}; copy or export it again"
        )
    return result


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
            fields["target"],
            fields["sha256"],
            fields["size"],
            tuple(_port(port) for port in fields["inputs"]),
            tuple(_port(port) for port in fields["outputs"]),
            fields["provenance"],
            fields["versions"],
            tuple(fields["files"]),
            fields["details"],
            fields["measured"],
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(
            f"the manifest {manifest_path(path)} is damaged ({error}); export the model again"
        ) from error


def _port(fields: Mapping[str, Any]) -> Port:
    return Port(**{**fields, "shape": tuple(fields["shape"])})


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
