"""What a run folder says of its run: `fedkit show`, and the end of `fedkit run`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from rich.table import Table

from fedkit.cli.tables import run_table, shown_table
from fedkit.core.errors import CheckpointError
from fedkit.report.run_steps import counted
from fedkit.server.checkpoint import RunFolder
from fedkit.sparse.reach import Reach
from fedkit.tasks.task import Metric

SUMMARY = "summary.json"
"""File of a run folder that holds the summary of a finished run."""


def show(path: Path) -> dict[str, Any]:
    """Return a run's summary, or what is known of a run that did not finish.

    Raises:
        CheckpointError: There is no run, nothing of it is whole, or its summary is damaged.
    """
    folder = RunFolder.open(path)
    finished = folder.path / SUMMARY
    if finished.is_file():
        return _read_summary(finished)
    return {**figures(folder), "finished": False}


def table_of(path: Path) -> Callable[[Mapping[str, Any]], Table]:
    """Return what makes the table of a run's figures, with lines of its steps."""
    return lambda figures: shown_table(figures, RunFolder.open(path).metrics())


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads(path.read_bytes())
        run_table(summary)  # what it lacks for that, it lacks
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it, and fedkit show "
            "tells what the run's other files hold"
        ) from error
    return summary


def figures(folder: RunFolder) -> dict[str, Any]:
    """Return what a run's own files say: accuracies, density, bytes and seconds.

    `bytes_up` and `bytes_down` count the transport's messages whole where there was a transport,
    else the payload. `bytes_dense_fedavg` is what dense FedAvg would send as bare float32 payload.
    """
    steps = folder.metrics()
    if not steps:
        raise CheckpointError(f"run {folder.path} has no finished step; nothing to show, run again")
    by_phase = {step["phase"]: step for step in steps}
    ways, key = ("down", "up"), counted(steps)
    payload = {way: sum(step[f"bytes_{way}"] for step in steps) for way in ways}
    sent = {way: sum(step.get(f"{key}_{way}", 0) for step in steps) for way in ways}
    about = steps[-1].get("metric")
    name = Metric.of(about).key
    return {
        "run": str(folder.path),
        "task": folder.config.task,
        "model": folder.config.model,
        "devices": folder.config.devices,
        "seed": folder.config.seed,
        "rounds": steps[-1]["round"],
        "rounds_planned": folder.config.rounds,
        **({} if about is None else {"metric": about}),
        f"{name}_dense_start": by_phase.get("start", {}).get("accuracy"),
        f"{name}_selected": by_phase.get("selection", {}).get("accuracy"),
        f"{name}_sparse": last_value(steps),
        **_of_devices(steps),
        "density": steps[-1]["density"],
        **_of_all(folder, steps[-1]["density"]),
        "bytes_up": sent["up"],
        "bytes_down": sent["down"],
        "bytes_payload_up": payload["up"],
        "bytes_payload_down": payload["down"],
        "bytes_dense_fedavg": _dense_bytes(folder, steps[-1]["round"]),
        "bytes_dense_fedavg_measured": False,
        "seconds": steps[-1].get("seconds", 0.0),
    }


def _of_devices(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what devices measured last on their own data; nothing where they did not."""
    measured = [step for step in steps if "devices_mean" in step]
    found = measured[-1] if measured else {}
    return {key: value for key, value in found.items() if key.startswith("devices_")}


def _of_all(folder: RunFolder, density: float) -> dict[str, Any]:
    """Return what a density of the prunable weights is of all weights; nothing where unknown."""
    try:
        reach = Reach.of(folder.load().layout)
    except CheckpointError:
        return {}
    return {
        "weights": reach.weights,
        "prunable_weights": reach.prunable,
        "kept_of_all_weights": reach.kept_of_all(density),
    }


def _dense_bytes(folder: RunFolder, rounds: int) -> int:
    """All float32 weights and statistics, to and from every device, every round; 0: unknown."""
    try:
        layout = folder.load().layout
    except CheckpointError:
        return 0
    shapes = [*layout.weights.values(), *layout.stats.values()]
    return 2 * 4 * sum(map(math.prod, shapes)) * rounds * folder.config.devices


def last_value(metrics: list[dict[str, Any]]) -> float:
    """Return the metric as last measured; NaN where the lines that held one are damaged."""
    measured = (s["accuracy"] for s in metrics[::-1] if s["accuracy"] is not None)
    return cast(float, next(measured, math.nan))
