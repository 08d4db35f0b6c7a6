"""`fedkit bench infer`: one inference of our C next to LiteRT and onnxruntime, on this machine.

One example at a time, one thread of one core, all from one integer graph. Every runner is asked for
the same thing: to run once more on what it holds. No input is copied and no result, so that what is
left of Python is one call of a function. All take their turns; a row's time is the median of its
turns, a ratio the median over pairs of turns.

ExecuTorch runs in a process of its own, which answers when its turn comes, where it is installed
(`fedkit.bench.infer_executorch`). It quantises the float model itself, and knows nothing of
channels that can go.

Weights are random under random masks, each layer with the same share. Channels that no weight leads
to an output are taken out for all (`edge.passes.slim`), so LiteRT and onnxruntime gain by that too;
`ratio_litert_whole` compares with LiteRT on the model as other converters would leave it.

`artifact_bytes` is the file, of C its compiled code and constants. `ram_bytes` is what one more
instance of the model adds to the memory of a process that has run one already; of C, which
allocates nothing, code, constants and arena.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edge.export import float_graph, save_c99, save_onnx, save_tflite
from edge.passes.slim import slim
from edge.quantize.to_int8 import quantize
from edge.runners import open_runner
from edge.targets.c99.runner import CompiledRunner
from fedkit.bench import markdown
from fedkit.bench.infer_executorch import ExecuTorch, installed
from fedkit.bench.process import run_json
from fedkit.bench.sparsetrain import one_core, random_batch, randomly_pruned
from fedkit.engine.torch import TorchEngine
from fedkit.graph import ir
from fedkit.nn.zoo import build_model, seeded
from fedkit.tasks.task import cross_entropy

_SEED = 0
SHAPE = (3, 32, 32)
"""Of an example, as torch takes it."""
_CLASSES = 10
_CALIBRATION = 16
_CHILD = Path(__file__).with_name("infer_child.py")


class Timed(Protocol):
    """What can be timed."""

    def latency(self, repeats: int) -> dict[str, float]:
        """Return "median_us", of so many runs."""


Runners = Mapping[str, Timed]
"""By the name of the runtime in the rows."""


def bench_infer(quick: bool) -> dict[str, Any]:
    """Measure all runtimes on ResNet-8 and ResNet-18 of widths 16 to 128.

    Args:
        quick: ResNet-8 alone, dense and at 1 %, and few turns.

    Raises:
        ExportError: A runtime or a C compiler is missing.
        BenchError: ExecuTorch is named and does not run.
        OSError: Memory cannot be measured; this is not Linux.
    """
    models: tuple[str, ...] = ("resnet8", "resnet18-w16")
    densities: tuple[float, ...] = (1.0, 0.1, 0.05, 0.01)
    turns = 30
    if quick:
        models, densities, turns = models[:1], (1.0, 0.01), 5
    rows = [
        row
        for name in models
        for density in densities
        for row in model_rows(name, density, turns, installed() and not quick)
    ]
    return {"benchmark": "infer", "seed": _SEED, "threads": 1, "rows": rows}


def model_rows(
    name: str, density: float, turns: int, executorch: bool = False
) -> list[dict[str, Any]]:
    """Measure one model at one density.

    Args:
        name: A model of the zoo.
        density: Kept share of all prunable weights.
        turns: How often each runtime is timed.
        executorch: Time it too; it takes 20 s to compile a model.

    Returns:
        A row per runtime.
    """
    inputs = random_batch(_CALIBRATION, SHAPE).inputs
    model = random_model(name, density)
    whole = quantize(float_graph(model, SHAPE), ir.to_graph_layout(inputs))
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as folder, ExitStack() as stack:
        paths = _save(slim(whole), whole, inputs, Path(folder))
        runners: dict[str, Timed] = {key: open_runner(path) for key, path in paths.items()}
        with one_core():
            if executorch:
                baseline = ExecuTorch(model, inputs, Path(folder))
                runners["executorch"] = stack.enter_context(baseline)
            times = times_in_turns(runners, turns)
        return [
            {
                "model": name,
                "density": density,
                "runtime": runtime,
                "microseconds": round(statistics.median(times[runtime]), 2),
                **_bytes(runner, paths.get(runtime)),
                **_ratios(times, runtime),
            }
            for runtime, runner in runners.items()
        ]


def random_model(name: str, density: float, shape: Sequence[int] = SHAPE) -> nn.Module:
    """Return a model of the zoo with random weights, each layer pruned at random."""
    return pruned_model(lambda: build_model(name, shape, _CLASSES), density)


def pruned_model(make: Callable[[], nn.Module], density: float) -> nn.Module:
    """Return what `make` does, with random weights, each layer pruned at random."""
    engine = TorchEngine(seeded(make, _SEED), cross_entropy)
    return engine.module(randomly_pruned(engine.initial_state(), density)).eval()


def _save(
    graph: ir.Graph, whole: ir.Graph, inputs: NDArray[np.float32], folder: Path
) -> dict[str, Path]:
    saved = {
        "c99": save_c99(graph, inputs, folder / "c99", {}),
        "c99 for size": save_c99(graph, inputs, folder / "size", {}, "size"),
        "litert": save_tflite(graph, inputs, folder / "model.tflite", {}),
        "litert, whole": save_tflite(whole, inputs, folder / "whole.tflite", {}),
        "onnxruntime": save_onnx(graph, inputs, folder / "model.onnx", {}),
    }
    return {runtime: artifact.path for runtime, artifact in saved.items()}


def times_in_turns(runners: Runners, turns: int) -> dict[str, list[float]]:
    """Return microseconds of one inference: each runtime's, a median per turn."""
    times: dict[str, list[float]] = {runtime: [] for runtime in runners}
    for _ in range(turns):
        for runtime, runner in runners.items():
            times[runtime].append(runner.latency(repeats=20)["median_us"])
    return times


def _bytes(runner: Timed, path: Path | None) -> dict[str, int]:
    if isinstance(runner, ExecuTorch):
        return runner.bytes
    assert path is not None
    if isinstance(runner, CompiledRunner):
        code = runner.code_bytes()
        ram = code + runner.artifact.details["arena_bytes"]
        return {"artifact_bytes": code, "ram_bytes": ram}
    added = run_json("-P", str(_CHILD), str(path))["ram_bytes"]
    return {"artifact_bytes": path.stat().st_size, "ram_bytes": added}


def _ratios(times: Mapping[str, Sequence[float]], runtime: str) -> dict[str, float | None]:
    baselines = {
        "litert": "litert",
        "litert_whole": "litert, whole",
        "ort": "onnxruntime",
        "executorch": "executorch",
    }
    ours = runtime.startswith("c99")
    return {
        f"ratio_{key}": round(median_ratio(times[baseline], times[runtime]), 3)
        if ours and baseline in times
        else None
        for key, baseline in baselines.items()
    }


def median_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Return the median over pairs of turns of how many times as long theirs took."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = (
        "| model | density | runtime | us | artifact | memory | LiteRT / ours "
        "| whole LiteRT / ours | onnxruntime / ours | ExecuTorch / ours |"
    )
    baselines = "litert", "litert_whole", "ort", "executorch"
    rows = (
        f"| {row['model']} | {row['density']:.0%} | {row['runtime']} | {row['microseconds']:,.0f} "
        f"| {markdown.kb(row['artifact_bytes'])} | {markdown.kb(row['ram_bytes'])} "
        + "".join(f"| {markdown.times(row[f'ratio_{baseline}'])} " for baseline in baselines)
        + "|"
        for row in result["rows"]
    )
    return markdown.table(head, rows)
