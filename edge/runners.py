"""What runs an artifact here: one runner for each target and runtime."""

from __future__ import annotations

from pathlib import Path

from edge import artifact
from edge.targets.interpreter import INTERPRETER, InterpretedRunner
from edge.targets.registry import row_of, runtimes
from edge.targets.tflite.runner import Runner
from fedkit.core.errors import ExportError
from fedkit.graph.ops.embedding import MOST_TOKENS


def open_runner(path: Path | str, runtime: str = "", changed: bool = False) -> Runner:
    """Load an artifact in a runtime, one thread.

    Of C and Verilog that compiles and runs the code in the folder, even a stranger's; "interpreter"
    computes the same integers from the graph beside an artifact, and runs nothing of it.

    >>> open_runner("model-int8-c99").predict(images)  # doctest: +SKIP

    Args:
        path: The artifact.
        runtime: One of `edge.targets.registry.runtimes`, or "interpreter"; by default the usual one
            of the target.
        changed: Take a file or folder that is not as its manifest says.

    Raises:
        ExportError: The artifact does not match its manifest, the runtime does not fit its target,
            is missing or refuses it.
    """
    found = artifact.load(Path(path), changed)
    runtime = runtime_for(found, runtime)
    runner = _opened(found, runtime, changed)
    runner.series = _series(found)
    runner.tokens = found.count("tokens", MOST_TOKENS) if "tokens" in found.details else 0
    return runner


def _series(found: artifact.Artifact) -> list[str]:
    """Return which outputs are series in the model.

    Raises:
        ExportError: The manifest names others than maps of height 1.
    """
    names = found.detail("series", list) if "series" in found.details else []
    rows = [port.name for port in found.outputs if len(port.shape) == 4 and 1 in port.shape[1:3]]
    if any(name not in rows for name in names):
        raise ExportError(
            f"the manifest of {found.path} is damaged (it says that {names!r:.60} are series, and "
            f"outputs of one row are {rows!r:.60}); export the model again"
        )
    return names


def _opened(found: artifact.Artifact, runtime: str, changed: bool) -> Runner:
    row = row_of(found.target)
    if row is None or runtime == INTERPRETER:
        rounding = next(iter(row.runtimes[found.target].values())) if row else "half_up"
        return InterpretedRunner(found, rounding)
    return row.open(found, runtime, changed)


def runtime_for(found: artifact.Artifact, runtime: str = "") -> str:
    """Return the runtime to use for an artifact; errors as for `open_runner`."""
    if runtime == INTERPRETER:
        return runtime
    fitting = tuple(runtimes().get(found.target, ()))
    if not fitting:
        raise ExportError(
            f"{found.path} is made for {found.target!r}, which nothing runs; give an artifact for "
            f"one of {', '.join(runtimes())}"
        )
    if runtime and runtime not in fitting:
        raise ExportError(
            f"runtime is {runtime!r}, but {found.path} is made for {found.target}; give one of "
            f"{', '.join((*fitting, INTERPRETER))}"
        )
    return runtime or fitting[0]
