"""What runs an artifact here: one runner for each target and runtime."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from edge import artifact
from edge.define.rounding import RUNTIMES
from edge.targets.c99.runner import CompiledRunner
from edge.targets.fpga.runner import SimulatedRunner
from edge.targets.interpreter import INTERPRETER, InterpretedRunner
from edge.targets.onnx.runner import OnnxRunner
from edge.targets.tflite.runner import Runner, Runtime, TfliteRunner
from fedkit.core.errors import ExportError


def open_runner(path: Path | str, runtime: str = "", changed: bool = False) -> Runner:
    """Load an artifact in a runtime, one thread.

    Of C and Verilog that compiles and runs the code in the folder, even a stranger's; "interpreter"
    computes the same integers from the graph beside an artifact, and runs nothing of it.

    >>> open_runner("model-int8-c99").predict(images)  # doctest: +SKIP

    Args:
        path: The artifact.
        runtime: One of `edge.define.rounding.RUNTIMES`, or "interpreter"; by default the usual one
            of the target.
        changed: Take a file or folder that is not as its manifest says.

    Raises:
        ExportError: The artifact does not match its manifest, the runtime does not fit its target,
            is missing or refuses it.
    """
    found = artifact.load(Path(path), changed)
    runtime = runtime_for(found, runtime)
    if runtime == INTERPRETER:
        return InterpretedRunner(found)
    if runtime == "compiled":
        return CompiledRunner(found.path, changed=changed)
    if runtime == "simulated":
        return SimulatedRunner(found.path, changed=changed)
    model = found.path.read_bytes() if changed else found.path
    if runtime == "onnxruntime":
        return OnnxRunner(model)
    return TfliteRunner(model, cast(Runtime, runtime))


def runtime_for(found: artifact.Artifact, runtime: str = "") -> str:
    """Return the runtime to use for an artifact; errors as for `open_runner`."""
    if runtime == INTERPRETER:
        return runtime
    fitting = tuple(RUNTIMES.get(found.target, ()))
    if not fitting:
        raise ExportError(
            f"{found.path} is made for {found.target!r}, which nothing runs; give an artifact for "
            f"one of {', '.join(RUNTIMES)}"
        )
    if runtime and runtime not in fitting:
        raise ExportError(
            f"runtime is {runtime!r}, but {found.path} is made for {found.target}; give one of "
            f"{', '.join((*fitting, INTERPRETER))}"
        )
    return runtime or fitting[0]
