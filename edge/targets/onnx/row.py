"""ONNX as an export target; the package onnx is optional, and imported when it is needed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from edge import artifact
from edge.passes.name_by_module import name_by_module
from edge.targets.export_target import ExportTarget, Made, check_runs, content_of, needing_package
from edge.targets.onnx.runner import OnnxRunner
from edge.targets.tflite.runner import Runner
from fedkit.graph import ir

Form = Literal["qdq", "qoperator"]
_EXTRA = "onnx"


def _make(graph: ir.Graph, examples: ir.Inputs, path: Path, form: Form = "qdq") -> Made:
    del path
    with needing_package(_EXTRA):
        from edge.targets.onnx import emitter
    content = emitter.emit(name_by_module(graph), form)
    check_runs(OnnxRunner(content), examples)
    return Made(f"onnx-{form}", content, file_shape=emitter.file_shape)


def _open(found: artifact.Artifact, runtime: str, changed: bool) -> Runner:
    del runtime
    return OnnxRunner(content_of(found, changed))


def _made_with(found: artifact.Artifact) -> dict[str, Any]:
    return {"form": found.target.removeprefix("onnx-")}


def _require() -> None:
    with needing_package(_EXTRA):
        import_module("edge.targets.onnx.emitter")
        import_module("onnxruntime")


TARGET = ExportTarget(
    "onnx",
    ".onnx",
    {
        "onnx-qdq": {"onnxruntime": "onnxruntime"},
        "onnx-qoperator": {"onnxruntime": "onnxruntime"},
    },
    _make,
    _open,
    made_with=_made_with,
    require=_require,
)
