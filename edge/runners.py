"""What runs an artifact here: one runner for each target and runtime."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from edge import artifact
from edge.compiled import CompiledRunner
from edge.rounding import RUNTIMES
from edge.runtime import Runner, Runtime, TfliteRunner
from edge.runtime_onnx import OnnxRunner
from edge.simulated import SimulatedRunner
from fedkit.errors import ExportError


def open_runner(path: Path | str, runtime: str = "") -> Runner:
    """Load an artifact in a runtime, one thread.

    >>> open_runner("model-int8-c99").predict(images)  # doctest: +SKIP

    Args:
        path: The artifact.
        runtime: One of `edge.rounding.RUNTIMES`; by default the usual one of the target.

    Raises:
        ExportError: The artifact does not match its manifest, the runtime does not fit its target,
            is missing or refuses it.
    """
    found = artifact.load(Path(path))
    runtime = runtime_for(found, runtime)
    if runtime == "compiled":
        return CompiledRunner(found.path)
    if runtime == "simulated":
        return SimulatedRunner(found.path)
    if runtime == "onnxruntime":
        return OnnxRunner(found.path)
    return TfliteRunner(found.path, cast(Runtime, runtime))


def runtime_for(found: artifact.Artifact, runtime: str = "") -> str:
    """Return the runtime to use for an artifact; errors as for `open_runner`."""
    fitting = tuple(RUNTIMES.get(found.target, ()))
    if not fitting:
        raise ExportError(
            f"{found.path} is made for {found.target!r}, which nothing runs; give an artifact for "
            f"one of {', '.join(RUNTIMES)}"
        )
    if runtime and runtime not in fitting:
        raise ExportError(
            f"runtime is {runtime!r}, but {found.path} is made for {found.target}; give one of "
            f"{', '.join(fitting)}"
        )
    return runtime or fitting[0]
