"""`fedkit bench exact`: every artifact of trained models against the definition of its integers.

Each model is trained dense on Fashion-MNIST, or on a task of another kind of inputs, pruned by
magnitude to each density, shared out among layers by ERK, and trained on. Every state becomes one
integer graph and from it artifacts; each runs the first 2,000 test examples in each of its
runtimes, and is compared with the interpreter under that runtime's rounding policy (`edge.check`):
of C at every layer, of the others at the outputs. C by other compilers and without optimisation is
compared with the outputs of the first. Verilog is compared at every layer, on the first 20 alone,
as simulating a circuit takes seconds for each; where the FPGA target refuses a model, its row says
why. A model that takes long is compared on fewer, as its rows say.

The accuracy of weights with fewer bits is that of the compiled C, which gives the same integers. A
task may have another metric, which its rows name.

A finished cell is kept in runs/exact and not run again: stopped in any way, the same command
continues. Rows name the commit that made them.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge.artifact import Artifact
from edge.check import CheckReport, Known, check
from edge.cost import cost
from edge.export import int8_graph, save_c99, save_fpga, save_graph, save_onnx, save_tflite
from edge.quantize.truth import same_class
from edge.targets.c99.runner import CompiledRunner
from edge.targets.registry import runtimes
from edge.targets.tflite.runner import available_runtimes
from fedkit.bench import markdown
from fedkit.bench.kept import run_kept
from fedkit.core.errors import ExportError
from fedkit.core.provenance import made_by
from fedkit.engine.base import Engine, LocalTraining
from fedkit.engine.choose import make_engine
from fedkit.engine.torch import TorchEngine
from fedkit.graph.interpret import FloatArray
from fedkit.graph.ir import Graph
from fedkit.sparse.distribution import erk, kept_counts
from fedkit.sparse.masks import layer_masks
from fedkit.sparse.state import Masks, ModelState
from fedkit.stats.norms import as_stats
from fedkit.tasks import load_task
from fedkit.tasks.task import ACCURACY, Examples, Metric, Task

KEPT = Path("runs/exact")
_USUAL = "fashion-mnist"
DENSITIES = (1.0, 0.1, 0.05, 0.01)
_MANY = ("resnet8", "resnet18-w16", "ds-cnn", "mobilenetv2-w0.25")
_LARGE = ("vww-mobilenetv1-0.25", "mobilenetv3-small", "efficientnet-lite0", "resnet18-gn-w16")
MODELS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    **dict.fromkeys(_MANY, (_USUAL, DENSITIES)),
    **dict.fromkeys(_LARGE, (_USUAL, DENSITIES[:2])),
    "tc-resnet8": ("digits-rows", DENSITIES[:2]),
    "unet-w8": ("digits-pixels", DENSITIES[:2]),
    "ad-autoencoder": ("digits-reconstruction", DENSITIES[:2]),
    "vit-tiny": (_USUAL, DENSITIES[:2]),
    "slab-vit-tiny": (_USUAL, DENSITIES[:1]),
    "kwt-1": ("digits-rows", DENSITIES[:1]),
}
"""Model of the zoo -> the task it is trained on, and densities it is checked at."""

_LONG = {"efficientnet-lite0": {"compared": 200, "simulated": 0}}
"""Model -> how many examples it is compared on, where each takes long; its circuit takes longer
than 20 minutes for one."""

SEED = 1
_EPOCHS, _EPOCHS_SPARSE = 3, 2
_RATE, _MOMENTUM, _DECAY, _BATCH = 0.1, 0.9, 5e-4, 64
CALIBRATION = 256
"""Training images that set ranges."""

_STATISTICS = 5000
_MOST_REFUSAL = 200  # characters of a cell; results/exact.json has all
_BITS = (8, 6, 4)


@dataclass(frozen=True)
class Cell:
    """One model at one density.

    Attributes:
        model: A model of the zoo.
        density: Of its weights.
        examples: That an epoch passes over; a task that has fewer passes over them so often.
        images: Test examples that accuracies are measured on, at most.
        compared: The first of them, on which every artifact is compared with the interpreter.
        simulated: The first of those, which a simulated circuit is fed too.
    """

    model: str
    density: float
    examples: int
    images: int
    compared: int = 2000
    simulated: int = 20
    task: str = _USUAL


def bench_exact(quick: bool) -> dict[str, Any]:
    """Check every cell that is not kept yet, and return all.

    Args:
        quick: ResNet-8 alone, at 5 %, on few examples, and nothing kept.

    Raises:
        ExportError: A runtime, a C compiler or yosys is missing.
        DataError: The data set is not installed.
    """
    if quick:
        rows = run(Cell("resnet8", 0.05, 600, 100))["rows"]
    else:
        cells = [cell for model in MODELS for cell in cells_of(model)]
        rows = [row for kept in run_kept(cells, run, KEPT) for row in kept["rows"]]
    return {"benchmark": "exact", "seed": SEED, "rows": rows}


def cells_of(model: str) -> list[Cell]:
    """Return the cells of a model."""
    task, densities = MODELS[model]
    fewer = _LONG.get(model, {})
    return [Cell(model, density, 20_000, 10_000, task=task, **fewer) for density in densities]


def run(cell: Cell) -> dict[str, Any]:
    """Train and check one model; return its rows."""
    return {"rows": state_rows(cell, trained(cell), load_task(cell.task))}


# Training


def trained(cell: Cell) -> ModelState:
    """Return a state that was trained and pruned at every density down to the cell's."""
    return _trained(cell.model, cell.task, cell.density, cell.examples)


@functools.lru_cache(maxsize=len(DENSITIES))
def _trained(model: str, name: str, density: float, examples: int) -> ModelState:
    task = load_task(name)
    rng = np.random.default_rng(SEED)
    everything = task.train_data()
    data = everything.take(rng.permutation(len(everything))[:examples])
    engine, _ = make_engine(task, model, SEED, "auto")
    often = examples / len(data)
    if density == 1:
        return _train(engine, engine.initial_state(), data, round(often * _EPOCHS), _RATE)
    state = _trained(model, name, min(each for each in DENSITIES if each > density), examples)
    state = state.with_masks(_pruned(state, density))
    return _train(engine, state, data, round(often * _EPOCHS_SPARSE), _RATE / 4)


def reference_of(name: str, task: Task) -> TorchEngine:
    """Return the torch engine of a model of the zoo, with the weights that training begins with."""
    return TorchEngine.for_task(task, name, SEED)


def _pruned(state: ModelState, density: float) -> Masks:
    prunable = {name: state.weights[name] for name in state.masks}
    shapes = {name: weight.shape for name, weight in prunable.items()}
    return layer_masks(prunable, kept_counts(shapes, density, erk(shapes)))


def _train(
    engine: Engine, state: ModelState, data: Examples, epochs: int, start: float
) -> ModelState:
    """Train with rates along a cosine; take the statistics of norms under the final weights."""
    for epoch in range(epochs):
        rate = start * (1 + math.cos(math.pi * epoch / epochs)) / 2
        how = LocalTraining(1, _BATCH, rate, _MOMENTUM, _DECAY)
        state, _ = engine.train(state, data, how, seed=1000 * SEED + epoch)
    moments = engine.norm_moments(state, data.take(np.arange(min(len(data), _STATISTICS))))
    return replace(state, stats={**state.stats, **as_stats(moments)})


# Checking


def state_rows(cell: Cell, state: ModelState, task: Task) -> list[dict[str, Any]]:
    """Export a cell's state and check all its artifacts; return a row for each runtime."""
    reference = reference_of(cell.model, task)
    model, calibration = reference.module(state), task.train_data().inputs[:CALIBRATION]
    test = task.test_data()
    test = test.take(np.arange(min(len(test), cell.images)))
    graph = int8_graph(model, calibration, accept_error=True)
    assert graph.origin is not None  # every graph that is made here has one
    floats = graph.origin.floats
    about = {
        "commit": made_by()["commit"],
        "model": cell.model,
        "task": task.name,
        "density": round(state.density, 4),
        "parameters": cost(floats).parameters,
        "parameters_slim": cost(graph).parameters,
        "macs": cost(floats).macs,
        "macs_slim": cost(graph).macs,
        "accuracy_float": task.metric(reference.outputs(state, test.inputs), test.targets),
    }
    if task.measure is not ACCURACY:
        about["metric"] = task.measure.about
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as folder:
        for bits in _BITS:
            less = graph if bits == 8 else int8_graph(floats, calibration, bits, accept_error=True)
            saved = save_c99(less, calibration, Path(folder, f"c99-int{bits}"), {})
            found = CompiledRunner(saved.path).predict(test.inputs)
            about[f"accuracy_int{bits}"] = task.metric(found, test.targets)
        return [
            {**about, "runtime": runtime, **_figures(report)}
            for runtime, report in _reports(cell, graph, calibration, test.inputs, Path(folder))
        ]


def _reports(
    cell: Cell, graph: Graph, calibration: FloatArray, inputs: FloatArray, folder: Path
) -> Iterator[tuple[str, CheckReport | str]]:
    inputs = inputs[: cell.compared]
    whole = save_graph(graph, folder / "model.graph", {})
    about = {"graph": whole.path.name, "graph_sha256": whole.sha256}
    known = Known()
    yield from _c_reports(save_c99(graph, calibration, folder / "model", about), inputs, known)
    saved = [
        save_tflite(graph, calibration, folder / "model.tflite", about),
        save_onnx(graph, calibration, folder / "model.onnx", about),
        save_onnx(graph, calibration, folder / "operators.onnx", about, "qoperator"),
    ]
    for artifact in saved:
        for runtime in runtimes()[artifact.target]:
            if artifact.target != "tflite" or runtime in available_runtimes():
                report = check(artifact.path, inputs, runtime, known=known)
                yield f"{runtime}, {artifact.target}", report
    yield "Verilog", verilog_report(graph, calibration, inputs[: cell.simulated], folder, about)


def verilog_report(
    graph: Graph,
    calibration: FloatArray,
    inputs: FloatArray,
    folder: Path,
    about: Mapping[str, Any],
) -> CheckReport | str:
    """Compare the circuit of a graph at every layer; where there is nothing to compare, say why.

    Args:
        graph: Int8; saved in the folder, under the name that `about` gives.
        calibration: float32 [n, ...], whose first examples the folder's testbench gets.
        inputs: float32 [n, ...].
        folder: Where to write.
        about: Provenance, which names the graph.
    """
    try:
        saved = save_fpga(graph, calibration, folder / "model-fpga", about)
    except ExportError as error:
        return str(error)
    if not len(inputs):
        return "not simulated: an example takes too long"
    return check(saved.path, inputs, layers=True)


def _c_reports(
    artifact: Artifact, inputs: FloatArray, known: Known
) -> Iterator[tuple[str, CheckReport]]:
    first, *others = ((*build, level) for level in ("-O3", "-O0") for build in _compilers())
    with _compiler(first[1]):
        yield f"{first[0]} {first[2]}", check(artifact.path, inputs, layers=True, known=known)
        usual = CompiledRunner(artifact.path)
    integers = usual.quantize(inputs)
    expected = usual.predict_int8(integers)
    for name, command, level in others:
        with _compiler(command):
            actual = CompiledRunner(artifact.path, (level, "-march=native")).predict_int8(integers)
        report = CheckReport("compiled", "half_up", len(inputs))
        report.outputs.add(actual, expected)
        report.same_class = same_class(np.moveaxis(actual, 1, -1), np.moveaxis(expected, 1, -1))
        yield f"{name} {level}", report


def _compilers() -> list[tuple[str, str]]:
    """Return name and command of each; clang comes with ziglang."""
    found = [("gcc", "gcc")]
    if importlib.util.find_spec("ziglang") is not None:
        found.append(("clang", f"{sys.executable} -m ziglang cc"))
    return found


@contextmanager
def _compiler(command: str) -> Iterator[None]:
    before = os.environ.get("CC")
    os.environ["CC"] = command
    try:
        yield
    finally:
        if before is None:
            del os.environ["CC"]
        else:
            os.environ["CC"] = before


def _figures(report: CheckReport | str) -> dict[str, Any]:
    if isinstance(report, str):
        return {**_figures(CheckReport("", "half_up")), "same_class": None, "refused": report}
    tallies = [report.outputs, *report.layers.values()]
    return {
        "rounding": report.rounding,
        "examples": report.examples,
        "activations": len(tallies),
        "integers": sum(tally.integers for tally in tallies),
        "mismatches": report.mismatches,
        "largest_steps": max(tally.largest for tally in tallies),
        "same_class": report.same_class / max(1, report.examples),
        "first": f"{report.first.tensor} of {report.first.source}" if report.first else "",
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """A line per model and density: what differs in each runtime, accuracies, what slimming cut."""
    models: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        models.setdefault((row["model"], row["density"]), []).append(row)
    first = next(iter(models.values()))
    runtimes = list(dict.fromkeys(row["runtime"] for row in result["rows"]))
    bits = [key for key in first[0] if key.startswith("accuracy_int")]
    names = " | ".join(key.removeprefix("accuracy_") for key in bits)
    head = f"| model | density | {' | '.join(runtimes)} | float | {names} | parameters | MACs |"
    rows = []
    for (_, density), found in models.items():
        own, by_runtime = found[0], {row["runtime"]: _differ(row) for row in found}
        cells = [by_runtime.get(runtime, "") for runtime in runtimes]
        cells += _measured(own, bits)
        cells += [f"{own['parameters_slim']:,} of {own['parameters']:,}"]
        cells += [f"{own['macs_slim']:,} of {own['macs']:,}"]
        rows.append(f"| {_named(own)} | {density:.0%} | {' | '.join(cells)} |")
    return markdown.table(head, rows)


def _named(row: Mapping[str, Any]) -> str:
    task = row.get("task", _USUAL)
    return str(row["model"]) if task == _USUAL else f"{row['model']}, {task}"


def _measured(row: Mapping[str, Any], bits: Sequence[str]) -> list[str]:
    """Return the metric in float, and what fewer bits change: accuracies in points."""
    metric, real = Metric.of(row.get("metric")), row["accuracy_float"]
    changes = [row[key] - real for key in bits]
    if metric.name == ACCURACY.name:
        return [f"{real:.2%}", *(f"{100 * change:+.2f}" for change in changes)]
    return [f"{metric.text(real)} ({metric.name})", *(f"{change:+.2g}" for change in changes)]


def _differ(row: Mapping[str, Any]) -> str:
    """Return how many integers differ; or why there are none, in one cell of a table."""
    if "refused" in row:
        told = " ".join(row["refused"].replace("|", "/").split())
        return told if len(told) <= _MOST_REFUSAL else f"{told[:_MOST_REFUSAL]}..."
    return f"{row['mismatches']:,} of {row['integers']:,}"
