"""`fedkit bench jobs`: whole jobs of small devices, sparse by a fleet, dense and central.

A job is a built-in task with the settings of its example. Each is trained three times: `fedtiny`
by a fleet, as its example does; `dense`, which is FedAvg of the same length; `central`, the dense
model on all data in one place, for as many passes over it. Each model becomes int8 C, is measured
on the whole test set in floats and in integers, and counted on emulated processors. `unit` says
what was measured. `bytes_sent` is the payload of all devices, both ways, and 0 for a central model.
`seconds` is how long training took, and `cpu_seconds` what it took of all processors together.

Where a job tells more of its sparse artifact, that is in its row: of `damaged-digits` the ROC AUC
of each type, and what is found with the threshold that the sites choose; of `keywords` the
instructions with which the front end makes a frame of 20 ms.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.api import export_model, open_artifact
from edge.artifact import Artifact
from edge.bench.emulate import emulate_frame
from edge.bench.targets import find_target
from edge.check import graph_of
from edge.save import save
from fedkit.bench import markdown
from fedkit.bench.device import bench_device
from fedkit.core.provenance import made_by
from fedkit.graph.from_torch import outputs
from fedkit.preprocess.audio import SCALE, Audio
from fedkit.tasks import anomaly, damaged_digits, load_task
from fedkit.tasks.task import Task
from sim.in_process import FinishedRun, run

_SEED = 1
_CALIBRATION = 256
_PROCESSORS = ("cortex-m4", "cortex-a53")

Predict = Callable[[NDArray[np.float32]], NDArray[Any]]
"""Inputs [n, ...] -> outputs [n, ...]: a model, or an artifact."""


@dataclass(frozen=True)
class DeviceJob:
    """One of the jobs.

    Attributes:
        task: Name of a built-in task.
        fleet: Settings of the fleet.
        training: Settings of every model.
        quick: What replaces them for a trial.
        unit: What `measure` gives.
        measure: (task, model) -> how good it is.
        more: (task, model) -> what else to say of an artifact.
    """

    task: str
    fleet: Mapping[str, Any]
    training: Mapping[str, Any]
    quick: Mapping[str, Any]
    unit: str
    measure: Callable[[Task, Predict], float]
    more: Callable[[Task, Predict], dict[str, Any]]


VARIANTS: Mapping[str, Callable[[DeviceJob], dict[str, Any]]] = {
    "fedtiny": lambda job: {**job.fleet, **job.training},
    "dense": lambda job: {**job.fleet, **job.training, "method": "dense", "density": 1.0},
    "central": lambda job: {
        **{**job.training, "method": "dense", "density": 1.0},
        **{"devices": 1, "partition": "iid"},
    },
}
"""How a job is trained -> its settings."""


def bench_jobs(quick: bool) -> dict[str, Any]:
    """Run all jobs.

    Args:
        quick: A round or two each; the figures then mean little.
    """
    rows = [row(job, name, quick) for job in JOBS for name in VARIANTS]
    return {"benchmark": "jobs", "seed": _SEED, "rows": rows}


def row(job: DeviceJob, variant: str, quick: bool) -> dict[str, Any]:
    """Train one model of a job and measure it."""
    settings = {**VARIANTS[variant](job), "seed": _SEED, **(job.quick if quick else {})}
    task = load_task(job.task)
    task.examples("train")  # words are spoken before time is taken
    began, busy = time.perf_counter(), time.process_time()
    result = run(job.task, **settings)
    taken = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - busy}
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as folder:
        return {
            "job": job.task,
            "trained": variant,
            "density": round(result.density, 4),
            "unit": job.unit,
            **_measured(job, task, result, Path(folder) / "job-c99", variant),
            "bytes_sent": 0 if variant == "central" else result.bytes_sent,
            **{name: round(each, 1) for name, each in taken.items()},
            "commit": made_by()["commit"],
        }


def _measured(
    job: DeviceJob, task: Task, result: FinishedRun, path: Path, variant: str
) -> dict[str, Any]:
    module = result.module()
    train = task.examples("train").inputs
    some = train[:: max(1, len(train) // _CALIBRATION)]
    saved = export_model(module, some, path, raw_input=task.raw_input)

    def floats(inputs: NDArray[np.float32]) -> NDArray[Any]:
        return outputs(module, inputs)[0]

    def integers(inputs: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(runner.predict(inputs))

    runner = open_artifact(saved.path)
    counted = bench_device(False, _PROCESSORS, str(saved.path))["rows"]
    return {
        "float": round(job.measure(task, floats), 6),
        "int8": round(job.measure(task, integers), 6),
        **{row["target"]: _cost(row) for row in counted},
        **(job.more(task, integers) if variant == "fedtiny" else {}),
        **(_front_end(task, saved) if variant == "fedtiny" else {}),
    }


def _cost(row: Mapping[str, Any]) -> dict[str, int]:
    return {key: row[key] for key in ("instructions", "flash_bytes", "ram_bytes", "stack_bytes")}


def _front_end(task: Task, saved: Artifact) -> dict[str, Any]:
    """Return the instructions of a frame of a model of sound, where it is one."""
    audio = task.raw_input
    if not isinstance(audio, Audio):
        return {}
    window = audio.front_end.window
    sound = np.random.default_rng(_SEED).integers(-(2**15), 2**15, window).astype(np.int16)
    levels = audio.front_end.levels(sound)
    expected = saved.inputs[0].quantize(levels[0].astype(np.float32) / np.float32(SCALE))
    counts = {}
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as folder:
        for name in _PROCESSORS:
            target, graph = find_target(name), graph_of(saved)
            made = save(
                "c99",
                graph,
                task.examples("test").inputs[:1],
                Path(folder) / name / "model",
                {},
                audio,
                goal=target.goal,
                name="model",
            )
            counts[name] = emulate_frame(made, target, sound, expected)
    return {"front_end_instructions": counts}


# Jobs ----------------------------------------------------------------------------------------


def _scores(predict: Predict, inputs: NDArray[np.float32]) -> anomaly.Scores:
    return anomaly.scores(predict(inputs), inputs)


def _damage_auc(task: Task, predict: Predict) -> float:
    normal = task.examples("test")
    damaged = damaged_digits.damaged(normal)
    found, others = (_scores(predict, each.inputs) for each in (normal, damaged))
    return anomaly.judge(found, others, 0.0).roc_auc


def _damage_found(task: Task, predict: Predict) -> dict[str, Any]:
    """Return what the sites' threshold finds, in all and of each type."""
    train, normal = task.examples("train"), task.examples("test")
    damaged = damaged_digits.damaged(normal)
    owners = np.asarray(train.owners)
    told = [
        anomaly.spread(_scores(predict, train.inputs[owners == site])) for site in np.unique(owners)
    ]
    limit, types = anomaly.threshold(told), normal.columns["type"]
    own, others = (_scores(predict, each.inputs) for each in (normal, damaged))
    by_type = anomaly.judge_by_type(own, others, (types, types), limit)
    whole = asdict(anomaly.judge(own, others, limit))
    return {
        "threshold": {name: round(value, 6) for name, value in whole.items()},
        "roc_auc_by_type": {name: round(each.roc_auc, 6) for name, each in by_type.items()},
    }


def _metric(task: Task, predict: Predict) -> float:
    """Return the task's own metric on the test data."""
    test = task.examples("test")
    return task.measure(predict(test.inputs), test.targets)


def _nothing(task: Task, predict: Predict) -> dict[str, Any]:
    del task, predict
    return {}


JOBS = (
    DeviceJob(
        "damaged-digits",
        {"devices": 10, "partition": "natural-id", "density": 0.2},
        {"rounds": 60, "epochs": 5},
        {"rounds": 1, "epochs": 1, "server_epochs": 1, "sparse_epochs": 1},
        "ROC AUC",
        _damage_auc,
        _damage_found,
    ),
    DeviceJob(
        "keywords",
        {"devices": 24, "partition": "natural-id", "density": 0.2},
        {"rounds": 40, "epochs": 3, "batch_size": 32, "server_epochs": 10, "sparse_epochs": 10},
        {"rounds": 1, "epochs": 1, "server_epochs": 1, "sparse_epochs": 1},
        "accuracy",
        _metric,
        _nothing,
    ),
    DeviceJob(
        "keywords-kwt",
        {"devices": 24, "partition": "natural-id", "density": 0.2},
        {
            **{"rounds": 10, "epochs": 2, "batch_size": 8, "lr": 0.01, "lr_final": 0.002},
            **{"server_epochs": 30, "sparse_epochs": 10},
        },
        {"rounds": 1, "epochs": 1, "server_epochs": 1, "sparse_epochs": 1},
        "accuracy",
        _metric,
        _nothing,
    ),
    DeviceJob(
        "motions",
        {"devices": 5, "alpha": 1.0, "density": 0.2},
        {"rounds": 20, "epochs": 3, "batch_size": 16, "lr": 0.05},
        {"rounds": 1, "epochs": 1, "server_epochs": 1, "sparse_epochs": 1},
        "accuracy",
        _metric,
        _nothing,
    ),
    DeviceJob(
        "motions-gru",
        {"devices": 5, "alpha": 1.0, "density": 0.2},
        {"rounds": 20, "epochs": 3, "batch_size": 16, "lr": 0.2},
        {"rounds": 1, "epochs": 1, "server_epochs": 1, "sparse_epochs": 1},
        "accuracy",
        _metric,
        _nothing,
    ),
)
"""All jobs."""


def _frame(row: Mapping[str, Any]) -> str:
    counts = row.get("front_end_instructions", {})
    return " / ".join(f"{counts[name]:,}" for name in counts)


def _minutes(row: Mapping[str, Any]) -> str:
    return f"{row['cpu_seconds'] / 60:.1f} min" if "cpu_seconds" in row else ""


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table of results."""
    head = (
        "| job | trained | density | measured | float | int8 C | sent | training "
        "| Cortex-M4: instructions | flash | RAM | Cortex-A53: instructions "
        "| a frame of sound, M4 / A53 |"
    )
    rows = (
        f"| {row['job']} | {row['trained']} | {row['density']:.0%} | {row['unit']} "
        f"| {row['float']:.4f} | {row['int8']:.4f} "
        f"| {markdown.mb(row['bytes_sent'])} | {_minutes(row)} "
        f"| {row['cortex-m4']['instructions']:,} | {markdown.kb(row['cortex-m4']['flash_bytes'])} "
        f"| {markdown.kb(row['cortex-m4']['ram_bytes'])} "
        f"| {row['cortex-a53']['instructions']:,} | {_frame(row)} |"
        for row in result["rows"]
    )
    return markdown.table(head, rows)
