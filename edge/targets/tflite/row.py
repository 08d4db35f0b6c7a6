"""TFLite as an export target."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from edge import artifact
from edge.passes.name_by_module import name_by_module
from edge.targets.export_target import ExportTarget, Made, check_runs, content_of
from edge.targets.tflite import emitter
from edge.targets.tflite.runner import Runner, Runtime, TfliteRunner
from fedkit.graph import ir


def _make(graph: ir.Graph, examples: ir.Inputs, path: Path) -> Made:
    del path
    content = emitter.emit(name_by_module(graph))
    check_runs(TfliteRunner(content), examples)
    return Made("tflite", content)


def _open(found: artifact.Artifact, runtime: str, changed: bool) -> Runner:
    return TfliteRunner(content_of(found, changed), cast(Runtime, runtime))


TARGET = ExportTarget(
    "tflite",
    ".tflite",
    {"tflite": {"ai-edge-litert": "half_even", "tflite-runtime": "gemmlowp"}},
    _make,
    _open,
)
