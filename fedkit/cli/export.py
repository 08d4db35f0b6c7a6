"""From a run to artifacts for devices: one integer graph, and a file or folder for each target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from edge import artifact as artifacts
from edge import graph_file, ir
from edge.artifact import Artifact
from edge.export import LANES, int8_graph, save_c99, save_fpga, save_graph, save_onnx, save_tflite
from edge.kernels.program import Goal
from edge.quantize import Scaling, Trained
from edge.runners import open_runner, runtime_for
from edge.runtime import Runner
from edge.simulated import SimulatedRunner
from fedkit import __version__
from fedkit.checkpoint import Checkpoint, RunFolder
from fedkit.config import make_config
from fedkit.engine.base import Engine, Layout
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.integer.inference import integers
from fedkit.errors import ConfigError, ExportError
from fedkit.sparse.state import ModelState, masks_digest
from fedkit.task import ACCURACY, Examples, Task
from fedkit.tasks import load_task
from sim.scenario import Scenario, make_scenario, test_examples

CALIBRATION = 256
"""Examples that set the ranges of activations."""

SIMULATED = 100
"""Test examples on which hardware is simulated: each takes a fraction of a second."""

_ENDINGS = {"tflite": ".tflite", "onnx": ".onnx", "c99": "-c99", "fpga": "-fpga"}
TARGETS = tuple(_ENDINGS)
BITS = (8, 6, 4)
GOALS = get_args(Goal)
SCALES = get_args(Scaling)


@dataclass(frozen=True)
class Form:
    """What to make of a model.

    Attributes:
        targets: Some of `TARGETS`.
        bits: Of the weights, one of `BITS`.
        scales: One of `SCALES`; "pow2" rescales by shifts.
        goal: What C is written for, one of `GOALS`.
        lanes: Filters that an FPGA computes at a time, 1 to 8.

    Raises:
        ConfigError: A value is none of those.
    """

    targets: tuple[str, ...] = ("tflite",)
    bits: int = 8
    scales: Scaling = "float"
    goal: Goal = "speed"
    lanes: int = LANES

    def __post_init__(self) -> None:
        for target in self.targets:
            _check_one_of("target", target, TARGETS)
        for name, known in (("bits", BITS), ("scales", SCALES), ("goal", GOALS)):
            _check_one_of(name, getattr(self, name), known)

    @property
    def stem(self) -> str:
        """What the names of the artifacts begin with."""
        return f"model-int{self.bits}{'' if self.scales == 'float' else f'-{self.scales}'}"


def _check_one_of(name: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; give one of {', '.join(map(str, known))}")


def export_run(path: Path, form: Form, log: Console) -> dict[str, Any]:
    """Export the last checkpoint of a run folder and measure its artifacts."""
    folder = RunFolder.open(path)
    made = export(folder, make_scenario(folder.config), log, form)
    return {"run": str(path), "artifacts": made}


def export(
    folder: RunFolder, scenario: Scenario, log: Console, form: Form | None = None
) -> list[dict[str, Any]]:
    """Export the last checkpoint of a run and measure each artifact on the whole test set.

    All targets are made from one integer graph, which is kept beside them.

    Args:
        folder: The run.
        scenario: That of its config.
        log: Where progress goes.
        form: What to make; by default a .tflite with weights of 8 bits.

    Raises:
        ExportError: An artifact is there already, or the model cannot be exported.
    """
    form = form or Form()
    paths = {each: folder.path / f"{form.stem}{_ENDINGS[each]}" for each in form.targets}
    for path in paths.values():
        artifacts.check_free(path)
    examples = _calibration(scenario)
    made = []
    with log.status("exporting and measuring"):
        whole = _graph(folder, scenario, examples, form)
        graph = graph_file.load_graph(whole.path)
        about = {**whole.provenance, "graph": whole.path.name, "graph_sha256": whole.sha256}
        for target, path in paths.items():
            saved = _save(target, graph, examples, path, about, form)
            measured = measure(saved, scenario.task, scenario.test)
            artifacts.record(saved, measured)
            made.append(measured)
    return made


def _graph(
    folder: RunFolder, scenario: Scenario, examples: NDArray[np.float32], form: Form
) -> Artifact:
    """Return the run's integer graph: the one that is there if it is of this checkpoint."""
    path, checkpoint = folder.path / f"{form.stem}.graph", folder.load()
    _check_same_model(checkpoint, scenario.engine.layout)
    about = _provenance(checkpoint, folder, form)
    if path.exists():
        found = artifacts.load(path)
        if found.provenance.get("checkpoint_sha256") != about["checkpoint_sha256"]:
            raise ExportError(
                f"{path} was made from another checkpoint than that of round {checkpoint.round}, "
                "which the run has now: move the run's artifacts away first"
            )
        return found
    state, trained = _with_integers(scenario.engine, checkpoint.state, form)
    graph = int8_graph(scenario.module(state), examples, form.bits, form.scales, trained)
    return save_graph(graph, path, about)


def _with_integers(
    engine: Engine, state: ModelState, form: Form
) -> tuple[ModelState, Trained | None]:
    """Return what to export: of integer training the integers, which the artifact keeps."""
    if not isinstance(engine, IntegerEngine):
        return state, None
    if (form.bits, form.scales) != (8, "float"):
        raise ExportError(
            f"bits is {form.bits} and scales {form.scales!r}, but the run was trained in integers "
            "of its own, which are kept: leave both out"
        )
    found = integers(engine, state)
    return found.state, Trained(found.weights, found.outputs)


def _save(
    target: str,
    graph: ir.Graph,
    examples: NDArray[np.float32],
    path: Path,
    about: Mapping[str, Any],
    form: Form,
) -> Artifact:
    if target == "c99":
        return save_c99(graph, examples, path, about, form.goal)
    if target == "fpga":
        return save_fpga(graph, examples, path, about, form.lanes)
    save: Callable[..., Artifact] = save_tflite if target == "tflite" else save_onnx
    return save(graph, examples, path, about)


def _check_same_model(checkpoint: Checkpoint, layout: Layout) -> None:
    if checkpoint.layout != layout:
        raise ExportError(
            f"the task {checkpoint.config.task!r} now builds another model than the one in the "
            "checkpoint; export with the version of the task that trained it"
        )


def _calibration(scenario: Scenario) -> NDArray[np.float32]:
    """Inputs that set the activation ranges: the server's own, else some of every device."""
    if scenario.server_data is not None:
        return scenario.server_data.inputs[:CALIBRATION]
    each = math.ceil(CALIBRATION / len(scenario.devices))
    return np.concatenate([device.inputs[:each] for device in scenario.devices])


def _provenance(checkpoint: Checkpoint, folder: RunFolder, form: Form) -> dict[str, Any]:
    return {
        "run": str(folder.path),
        "round": checkpoint.round,
        "density": checkpoint.state.density,
        "mask_digest": masks_digest(checkpoint.state.masks),
        "checkpoint_sha256": folder.digest(),
        "weight_bits": form.bits,
        "scales": form.scales,
        "fedkit": __version__,
        "config": checkpoint.config.model_dump(),
    }


# Measuring


def evaluate(path: Path, task: str, runtime: str) -> dict[str, Any]:
    """Measure an artifact on the test set of a task; by default of the run that made it."""
    found = artifacts.load(path)
    return measure(found, *task_of(found, task), runtime)


def task_of(found: Artifact, task: str) -> tuple[Task, Examples]:
    """Return a task and its test set; by default of the run that made the artifact.

    Raises:
        ExportError: No task was given and the manifest names none.
    """
    made_with = found.provenance.get("config")
    if made_with is None and not task:
        raise ExportError(
            f"{found.path} was not made by `fedkit`, so its manifest names no task; give --task"
        )
    config = make_config({**(made_with or {}), **({"task": task} if task else {})})
    on = load_task(config.task)
    return on, test_examples(on, config)


def measure(found: Artifact, task: Task, test: Examples, runtime: str = "") -> dict[str, Any]:
    """Return an artifact's metric on a test set, its latency here and its sizes.

    Of hardware that is the first of the test set's examples, and cycles instead of a latency.
    """
    runner = open_runner(found.path, runtime)
    count = SIMULATED if isinstance(runner, SimulatedRunner) else len(test)
    inputs, targets = test.inputs[:count], test.targets[:count]
    metric = task.measure
    value = metric(runner.predict(inputs), targets)
    return {
        "artifact": str(found.path),
        "target": found.target,
        "artifact_bytes": found.size,
        "activation_bytes": found.details.get("arena_bytes", found.details["activation_bytes"]),
        "runtime": runtime_for(found, runtime),
        **({} if metric is ACCURACY else {"metric": metric.about}),
        f"{metric.key}_int{found.provenance.get('weight_bits', 8)}": value,
        "test_examples": len(inputs),
        **_speed(runner),
    }


def _speed(runner: Runner) -> dict[str, float]:
    if isinstance(runner, SimulatedRunner):
        return {"cycles_per_inference": runner.cycles}
    latency = runner.latency()
    return {"latency_median_us": latency["median_us"], "latency_p95_us": latency["p95_us"]}
