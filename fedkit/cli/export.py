"""From a run to artifacts for devices: one integer graph, and a file or folder for each target."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from edge import artifact as artifacts
from edge import check as checks
from edge import graph_file
from edge.artifact import Artifact
from edge.check import Known
from edge.export import LANES, check_target, float_graph, int8_graph
from edge.passes.rewrites import asked
from edge.quantize import guard, truth
from edge.quantize.to_int8 import Scaling, TrainedIntegers
from edge.quantize.truth import ExportWarning
from edge.runners import open_runner, runtime_for
from edge.save import save, save_graph
from edge.targets.c99.calls import Goal
from edge.targets.c_names import NAME, check_new_name
from edge.targets.interpreter import INTERPRETER
from edge.targets.registry import NAMES, find_row, row_of
from fedkit.config import make_config
from fedkit.core.errors import ConfigError, ExportError
from fedkit.core.text import terminal_text
from fedkit.core.version import __version__
from fedkit.engine.base import Engine
from fedkit.graph import ir
from fedkit.server.checkpoint import Checkpoint, RunFolder
from fedkit.server.personal import device_state
from fedkit.server.scenario import Scenario, test_examples
from fedkit.sparse.layout import Layout
from fedkit.sparse.state import ModelState, masks_digest
from fedkit.tasks import load_task
from fedkit.tasks.task import ACCURACY, Examples, Task
from sim.scenario import make_scenario

CALIBRATION = 256
"""Examples that set the ranges of activations."""

_COMPARED = 16
"""Examples whose integers are compared when an artifact is made; `fedkit check` takes all."""

_BATCH = 256
"""Examples whose outputs are held at once when an artifact is measured."""

TARGETS = NAMES
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
        name: What the identifiers of C begin with.
        accept_error: Export also what is far from the float model, see `edge.quantize.truth`.
        device: Whose model it is, with what that device keeps to itself; None: the server's.
        rewrites: Names of rewrites of the float graph, see `edge.passes.rewrites`.

    Raises:
        ConfigError: A value is not one of those.
        ExportError: The name cannot be used in C, or a rewrite does not exist.
    """

    targets: tuple[str, ...] = ("tflite",)
    bits: int = 8
    scales: Scaling = "float"
    goal: Goal = "speed"
    lanes: int = LANES
    name: str = NAME
    accept_error: bool = False
    device: int | None = None
    rewrites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_new_name(self.name)
        asked(self.rewrites)
        for target in self.targets:
            _check_one_of("target", target, TARGETS)
        for name, known in (("bits", BITS), ("scales", SCALES), ("goal", GOALS)):
            _check_one_of(name, getattr(self, name), known)

    @property
    def stem(self) -> str:
        """What the names of the artifacts begin with."""
        whose = "" if self.device is None else f"-device{self.device}"
        scales = () if self.scales == "float" else (self.scales,)
        return "-".join((f"model{whose}-int{self.bits}", *scales, *dict.fromkeys(self.rewrites)))


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
        log: Where progress and warnings go.
        form: What to make; by default a .tflite with weights of 8 bits.

    Raises:
        ExportError: An artifact is there already, the model cannot be exported, or its integers
            would be far from its floats.
    """
    form = form or Form()
    paths = {each: artifact_paths(folder, form)[each] for each in form.targets}
    for path in paths.values():
        artifacts.check_free(path)
    examples = calibration(scenario)
    made = []
    with log.status("exporting and measuring"), _told(log):
        whole = _graph(folder, scenario, examples, form)
        graph = graph_file.load_graph(whole.path)
        errors, known = _float_errors(graph, scenario.test.inputs, form), Known()
        about = {**whole.provenance, "graph": whole.path.name, "graph_sha256": whole.sha256}
        for target, path in paths.items():
            options = {name: getattr(form, name) for name in find_row(target).options}
            saved = save(target, graph, examples, path, about, scenario.task.raw_input, **options)
            measured = measure(saved, scenario.task, scenario.test)
            about_errors = {key: asdict(each) for key, each in errors.items()}
            exact = _exactness(saved, scenario.test.inputs, known)
            artifacts.record(saved, {**measured, "float_error": about_errors, **exact})
            outputs = {key: each.output for key, each in errors.items()}
            made.append({**measured, "float_error": outputs})
    return made


def _exactness(saved: Artifact, test: NDArray[np.float32], known: Known) -> dict[str, Any]:
    """Compare some outputs with the definition of the integers, where nothing is simulated."""
    row = row_of(saved.target)
    if row is None or row.language == "Verilog":
        return {}
    found = checks.check(saved.path, test[:_COMPARED], known=known)
    told = {"runtime": found.runtime, "rounding": found.rounding, "examples": found.examples}
    return {"exact": {**told, "integers": found.outputs.integers, "differ": found.mismatches}}


def artifact_paths(folder: RunFolder, form: Form) -> dict[str, Path]:
    """Return where each target of a run goes, and under "graph" the graph that all come from."""
    endings = {"graph": ".graph", **{each: find_row(each).ending for each in form.targets}}
    return {each: folder.path / f"{form.stem}{ending}" for each, ending in endings.items()}


@contextmanager
def _told(log: Console) -> Iterator[None]:
    """Write an export's warnings to the log."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ExportWarning)
        try:
            yield
        finally:
            for message in dict.fromkeys(str(each.message) for each in caught):
                tell(log, message)


def tell(log: Console, text: str) -> None:
    """Write a warning to the log."""
    log.print("warning:", style="bold yellow", end=" ")
    log.print(text, markup=False, highlight=False, soft_wrap=True)


def check_exportable(scenario: Scenario, form: Form) -> None:
    """Lower the model as it is before training.

    What only trained weights can show, as sums that overflow, is not known then.

    Raises:
        ExportError: It cannot be exported, whatever it learns; what stands in the way is named.
    """
    for target in form.targets:
        find_row(target).require()
    module = scenario.module(scenario.engine.initial_state())
    inputs = scenario.test.inputs
    floats = float_graph(module, inputs.shape[1:], inputs.dtype == np.int64)
    for target in form.targets:
        check_target(floats, target)


def _float_errors(graph: ir.Graph, test: NDArray[np.float32], form: Form) -> dict[str, truth.Truth]:
    """Compare a graph with its float model, where it is known, on the test set too."""
    if graph.origin is None:
        return {}
    inputs = ir.to_graph_layout(test)
    on_test = truth.compare(graph, graph.origin.floats, inputs)
    truth.judge(on_test, graph, "the test set", form.accept_error)
    if out_of_range := guard.told(guard.look(graph.origin.floats, inputs)):
        warnings.warn(out_of_range, ExportWarning, stacklevel=2)
    return {"calibration": truth.of(graph.origin, graph.outputs), "test": on_test}


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
                f"{path} was not made from the checkpoint of round {checkpoint.round}, "
                "which the run has now: move the run's artifacts away first"
            )
        return found
    if form.device is None:
        state = checkpoint.state
    else:
        state = device_state(folder, checkpoint, scenario.engine, form.device)
    state, trained = _with_integers(scenario.engine, state, form)
    graph = int8_graph(
        scenario.module(state),
        examples,
        form.bits,
        form.scales,
        trained,
        form.accept_error,
        raw_input=scenario.task.raw_input,
        rewrites=form.rewrites,
    )
    _float_errors(graph, scenario.test.inputs, form)  # before anything is written
    return save_graph(graph, path, about)


def state_of(folder: RunFolder, scenario: Scenario, rewrites: Sequence[str]) -> ModelState:
    """Return the last state of a run, of which a float graph can be rewritten.

    Raises:
        ExportError: It was trained in integers.
    """
    checkpoint = folder.load()
    _check_same_model(checkpoint, scenario.engine.layout)
    state, trained = _with_integers(scenario.engine, checkpoint.state, Form())
    if trained is not None:
        raise ExportError(
            f"rewrites are {', '.join(rewrites)}, but the run was trained in integers of its own, "
            "which are kept: leave them out"
        )
    return state


def _with_integers(
    engine: Engine, state: ModelState, form: Form
) -> tuple[ModelState, TrainedIntegers | None]:
    """Return what to export: of integer training the integers, which the artifact keeps."""
    from fedkit.engine.integer.engine import IntegerEngine
    from fedkit.engine.integer.inference import integers

    if not isinstance(engine, IntegerEngine):
        return state, None
    if (form.bits, form.scales) != (8, "float"):
        raise ExportError(
            f"bits is {form.bits} and scales {form.scales!r}, but the run was trained in integers "
            "of its own, which are kept: leave both out"
        )
    found = integers(engine, state)
    return found.state, TrainedIntegers(found.weights, found.outputs)


def _check_same_model(checkpoint: Checkpoint, layout: Layout) -> None:
    if checkpoint.layout != layout:
        raise ExportError(
            f"the task {checkpoint.config.task!r} now builds a model that differs from the one in "
            "the checkpoint; export with the version of the task that trained it"
        )


def calibration(scenario: Scenario) -> NDArray[np.float32]:
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
        **({} if form.device is None else {"device": form.device}),
        **({"rewrites": form.rewrites} if form.rewrites else {}),
        "fedkit": __version__,
        "config": checkpoint.config.as_dict(),
    }


# Measuring


def evaluate(path: Path, task: str, runtime: str, changed: bool, log: Console) -> dict[str, Any]:
    """Measure an artifact on the test set of a task; by default of the run that made it."""
    found = artifacts.load(path, changed)
    say_what_runs(found, runtime, log)
    return measure(found, *task_of(found, task), runtime, changed)


def say_what_runs(found: Artifact, runtime: str, log: Console) -> None:
    """Say that the code in a folder is about to run here, if it is."""
    row = row_of(found.target)
    if row and row.language and runtime != INTERPRETER:
        log.print(
            f"compiling the {row.language} in {terminal_text(str(found.path))} and running it "
            "here: that is code from the folder's author; --runtime interpreter runs none of it",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


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


def measure(
    found: Artifact, task: Task, test: Examples, runtime: str = "", changed: bool = False
) -> dict[str, Any]:
    """Return an artifact's metric on a test set, its latency here and its sizes.

    Of hardware that is the first of the test set's examples, and cycles instead of a latency.
    """
    if len(found.outputs) != 1:
        raise ExportError(
            f"{found.path} has {len(found.outputs)} outputs, and a task measures one; export the "
            "model with that one, or compare the artifact with its graph: fedkit check"
        )
    runner = open_runner(found.path, runtime, changed)
    count = min(runner.most_examples or len(test), len(test))
    metric = task.measure
    seen = metric.start()
    for start in range(0, count, _BATCH):
        part = slice(start, min(start + _BATCH, count))
        seen.add(runner.predict(test.inputs[part]), test.targets[part])
    return {
        "artifact": str(found.path),
        "target": found.target,
        "artifact_bytes": found.size,
        "activation_bytes": found.detail(
            "arena_bytes" if "arena_bytes" in found.details else "activation_bytes", int
        ),
        "runtime": runtime_for(found, runtime),
        **({} if metric is ACCURACY else {"metric": metric.about}),
        f"{metric.key}_int{found.provenance.get('weight_bits', 8)}": seen.value(),
        "test_examples": count,
        **runner.speed(),
    }
