"""A file for a device, and beside it a manifest that says what it is and how it was made.

`model.tflite` has the manifest `model.tflite.json`. Neither is ever overwritten.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.files import write_whole
from fedkit.errors import ExportError

_MANIFEST_VERSION = 1
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


@dataclass(frozen=True)
class Artifact:
    """A saved model and its manifest.

    Attributes:
        path: The file; its manifest lies beside it.
        target: What it is for, for example "tflite".
        sha256: Of the file, in hexadecimal.
        size: Of the file, in bytes.
        provenance: How the model was made, as the caller put it.
        versions: Package -> version that wrote the file.
    """

    path: Path
    target: str
    sha256: str
    size: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    provenance: Mapping[str, Any]
    versions: Mapping[str, str]


def manifest_path(path: Path) -> Path:
    """Return where the manifest of an artifact lies."""
    return path.with_name(path.name + ".json")


def save(
    content: bytes,
    path: Path,
    *,
    target: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    provenance: Mapping[str, Any],
) -> Artifact:
    """Write an artifact and its manifest; each appears complete or not at all.

    Args:
        content: The file.
        path: Where to put it; the folder is made if need be.
        target: What it is for.
        inputs: The model's inputs.
        outputs: The model's outputs.
        provenance: How the model was made; must be JSON.

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
    )
    manifest = _to_json(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    write_whole(manifest_path(path), manifest.encode())
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
    """Read a manifest and check that the file beside it is the one it describes.

    Raises:
        ExportError: The file or manifest is missing or unreadable, or the file has changed.
    """
    path = Path(path)
    content = _read(path, "artifact")
    result = _from_json(path, _read(manifest_path(path), "manifest"))
    digest = hashlib.sha256(content).hexdigest()
    if len(content) != result.size or digest != result.sha256:
        raise ExportError(
            f"{path} is not the file its manifest describes: it has {len(content)} bytes and "
            f"sha256 {digest[:12]}, the manifest says {result.size} bytes and "
            f"{result.sha256[:12]}; copy or export it again"
        )
    return result


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(
            f"cannot read the {what} {path}: {error.strerror}; an artifact is a file and its "
            f"manifest (the same name with .json added): copy both"
        ) from error


def _to_json(artifact: Artifact) -> str:
    fields = {"manifest_version": _MANIFEST_VERSION, **asdict(artifact), "path": artifact.path.name}
    try:
        return json.dumps(fields, indent=2) + "\n"
    except TypeError as error:
        raise ExportError(f"the provenance cannot be written as JSON: {error}") from error


def _from_json(path: Path, text: bytes) -> Artifact:
    try:
        fields = json.loads(text)
        return Artifact(
            path,
            fields["target"],
            fields["sha256"],
            fields["size"],
            tuple(_port(port) for port in fields["inputs"]),
            tuple(_port(port) for port in fields["outputs"]),
            fields["provenance"],
            fields["versions"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"the manifest {manifest_path(path)} is damaged ({error!r}); export the model again"
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
