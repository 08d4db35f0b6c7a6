"""The main job: run a fleet, export what it learned, measure the artifact."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fedkit.checkpoint import RunFolder
from fedkit.cli.export import Form, check_exportable, export, tell
from fedkit.cli.tables import size
from fedkit.config import RunConfig
from fedkit.errors import CheckpointError, ExportError, FleetError
from fedkit.fleet.processes import tail
from fedkit.provenance import made_by
from fedkit.reach import Reach
from fedkit.task import ACCURACY, Metric
from sim.run import FlowerSimulation, record
from sim.scenario import Scenario, make_scenario, with_model_named

_POLL_SECONDS = 0.2


def folder_for(config: RunConfig, name: str, out: Path) -> Path:
    """Return the path of a run folder: `out/name`, or one named by time and task.

    Raises:
        CheckpointError: It exists.
    """
    task = config.task.rpartition(":")[2]
    path = out / (name or f"{time.strftime('%Y%m%d-%H%M%S')}-{task}")
    RunFolder.check_free(path)
    RunFolder.check_free(_dense_folder(path))
    return path


def _dense_folder(path: Path) -> Path:
    return path.with_name(f"{path.name}-dense")


def run_job(
    config: RunConfig,
    path: Path,
    with_dense: bool,
    in_process: bool,
    workers: int,
    log: Console,
    asked: Form | None = None,
) -> dict[str, Any]:
    """Run, export and measure; return the summary, which is also in the run folder.

    Args:
        config: The run.
        path: Its run folder, to be made.
        with_dense: Run dense FedAvg of the same length too, into `<path>-dense`.
        in_process: Run without Flower.
        workers: Devices that compute at the same time under Flower; 0: one per core.
        log: Where progress goes.
        asked: What to export; by default what `export` makes, if the model can be exported.

    Raises:
        ExportError: The model cannot be exported, which is found before anything runs if an export
            was asked for; or it is known only of what was learned.
    """
    config = with_model_named(config)
    scenario = make_scenario(config)
    scenario.check()
    log.print(f"engine: {scenario.engine_notice}", soft_wrap=True, markup=False)
    log.print(f"weights: {scenario.reach.line(config.density)}", soft_wrap=True, markup=False)
    _warn(scenario.warnings, log)
    refusal = _refusal(scenario, asked, log)
    runs = [(config, path)]
    if with_dense:
        dense = config.model_copy(update={"method": "dense", "density": 1.0})
        runs.append((dense, _dense_folder(path)))
    began = time.monotonic()
    _run_all(runs, in_process, workers or os.cpu_count() or 1, log)
    folder = RunFolder.open(path)
    summary = {**figures(folder), "engine": scenario.engine_notice, **made_by()}
    if with_dense:
        summary |= _dense_figures(path)
    if refusal:
        summary["export_refused"] = refusal
    try:
        if not refusal:
            summary |= _exported(export(folder, scenario, log, asked))
    except ExportError as error:
        raise ExportError(f"{error}. The run is complete: fedkit show {path}") from error
    finally:
        # Also without an artifact: hours of training must not depend on an unsupported layer.
        summary |= {"seconds_total": round(time.monotonic() - began, 1), "finished": True}
        warnings = [*scenario.warnings, *_at_chance(summary, scenario)]
        if warnings:
            summary["warnings"] = warnings
        folder.write_json("summary.json", summary)
    _warn(_at_chance(summary, scenario), log)
    return summary


def _refusal(scenario: Scenario, asked: Form | None, log: Console) -> str:
    """Return why the model cannot be exported, if so; an error where an export was asked for."""
    try:
        check_exportable(scenario, asked or Form())
    except ExportError as error:
        if asked is not None:
            raise ExportError(
                f"{error}. Nothing was run; without --export it trains, and gives no artifact"
            ) from error
        tell(log, f"the run will give no artifact: {error}")
        return str(error)
    return ""


def _exported(made: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first artifact's figures, and all where there are several."""
    return {**made[0], **({"artifacts": made} if len(made) > 1 else {})}


def _warn(texts: list[str], log: Console) -> None:
    for text in texts:
        log.print(f"warning: {text}", style="yellow", soft_wrap=True, markup=False)


def _at_chance(summary: dict[str, Any], scenario: Scenario) -> list[str]:
    """Say if the final model is hardly better than the most frequent class is, always given."""
    if scenario.task.measure is not ACCURACY or not scenario.test.labelled:
        return []
    _, counts = np.unique(scenario.test.targets, return_counts=True)
    chance = counts.max() / counts.sum()
    found, error = summary["accuracy_sparse"], math.sqrt(chance * (1 - chance) / counts.sum())
    if found > chance + 2 * error:
        return []
    return [
        f"the final model is at chance level: its accuracy is {found:.2%}, and to answer the most "
        f"frequent class always gives {chance:.2%}; see whether inputs, targets and --lr are "
        "right, or train for longer"
    ]


def _dense_figures(path: Path) -> dict[str, Any]:
    dense = figures(RunFolder.open(_dense_folder(path)))
    key = Metric.of(dense.get("metric")).key
    return {
        f"{key}_dense_fedavg": dense[f"{key}_sparse"],
        "bytes_dense_fedavg": dense["bytes_up"] + dense["bytes_down"],
        "bytes_dense_fedavg_measured": True,
    }


# Running -------------------------------------------------------------------------------------


def _run_all(
    runs: list[tuple[RunConfig, Path]], in_process: bool, workers: int, log: Console
) -> None:
    try:
        if in_process:
            _run_here(runs, log)
        else:
            _run_flower(runs, workers, log)
    except KeyboardInterrupt:
        done = [str(folder) for _, folder in runs if (folder / "checkpoint").is_dir()]
        look = f"look at it with: fedkit show {done[0]}" if done else "no round was finished"
        raise FleetError(f"stopped by Ctrl-C; what was learned so far is kept; {look}") from None


def _run_here(runs: list[tuple[RunConfig, Path]], log: Console) -> None:
    for config, path in runs:
        scenario = make_scenario(config)
        with _progress(config, path, log) as update:
            record(scenario, scenario.local_fleet(), path, after_step=lambda _: update())


def _run_flower(runs: list[tuple[RunConfig, Path]], workers: int, log: Console) -> None:
    first = runs[0][1]
    first.parent.mkdir(parents=True, exist_ok=True)
    flower_log = first.with_name(f"{first.name}.flower.log")
    try:
        with FlowerSimulation(flower_log) as simulation:
            for config, path in runs:
                with _progress(config, path, log) as update:
                    process = simulation.submit(config, path, workers)
                    while process.poll() is None:
                        time.sleep(_POLL_SECONDS)
                        update()
                    update()
                _check_finished(config, path, process.returncode, flower_log)
    finally:
        if first.is_dir():
            flower_log.replace(first / "flower.log")


def _check_finished(config: RunConfig, path: Path, code: int, flower_log: Path) -> None:
    """`flwr run` ends with 0 even if the app failed; the run folder tells."""
    reason = path / "error.txt"
    if reason.is_file():
        raise FleetError(f"the run in {path} failed: {reason.read_text(encoding='utf-8').strip()}")
    metrics = RunFolder(path).metrics()
    done = metrics[-1]["round"] if metrics else 0
    if done < config.rounds:
        raise FleetError(
            f"the Flower run ended (exit code {code}) after {done} of {config.rounds} rounds; "
            f"Flower's log ends in:\n{tail(flower_log)}"
        )


@contextmanager
def _progress(config: RunConfig, path: Path, log: Console) -> Iterator[Callable[[], None]]:
    """Show a bar that follows the metrics file of a run."""
    text = "{task.description} {task.completed:.0f}/{task.total:.0f} {task.fields[status]}"
    columns = (TextColumn(text), BarColumn(bar_width=20), TimeElapsedColumn())
    with Progress(*columns, console=log) as progress:
        bar = progress.add_task(config.method, total=config.rounds, status="starting")

        def update() -> None:
            metrics = RunFolder(path).metrics()
            if metrics:
                progress.update(bar, completed=metrics[-1]["round"], status=_status(metrics))

        yield update


def _status(metrics: list[dict[str, Any]]) -> str:
    last = metrics[-1]
    sent = sum(step["bytes_up"] + step["bytes_down"] for step in metrics)
    metric = Metric.of(last.get("metric"))
    value = metric.text(_value(metrics))
    return f"{metric.name} {value} density {last['density']:.1%} {size(sent)}"


def _value(metrics: list[dict[str, Any]]) -> float:
    """Return the metric as last measured; the dense start's is always there."""
    return cast(float, next(s["accuracy"] for s in metrics[::-1] if s["accuracy"] is not None))


# Summing up ----------------------------------------------------------------------------------


def show(path: Path) -> dict[str, Any]:
    """Return a run's summary, or what is known of a run that did not finish."""
    folder = RunFolder.open(path)
    finished = folder.path / "summary.json"
    if finished.is_file():
        try:
            return cast(dict[str, Any], json.loads(finished.read_text(encoding="utf-8")))
        except ValueError as error:
            raise CheckpointError(f"{finished} is damaged ({error}); remove it") from error
    return {**figures(folder), "finished": False}


def figures(folder: RunFolder) -> dict[str, Any]:
    """Return what a run's own files say: accuracies, density, bytes and seconds.

    `bytes_up` and `bytes_down` count the transport's messages whole where there was a transport,
    else the payload. `bytes_dense_fedavg` is what dense FedAvg would send as bare float32 payload.
    """
    steps = folder.metrics()
    if not steps:
        raise CheckpointError(f"run {folder.path} has no finished step; nothing to show, run again")
    by_phase = {step["phase"]: step for step in steps}
    payload = {way: sum(step[f"bytes_{way}"] for step in steps) for way in ("down", "up")}
    messages = {way: sum(step.get(f"message_bytes_{way}", 0) for step in steps) for way in payload}
    sent = messages if any(messages.values()) else payload
    about = steps[-1].get("metric")
    key = Metric.of(about).key
    return {
        "run": str(folder.path),
        "task": folder.config.task,
        "model": folder.config.model,
        "devices": folder.config.devices,
        "seed": folder.config.seed,
        "rounds": steps[-1]["round"],
        "rounds_planned": folder.config.rounds,
        **({} if about is None else {"metric": about}),
        f"{key}_dense_start": by_phase["start"]["accuracy"],
        f"{key}_selected": by_phase.get("selection", {}).get("accuracy"),
        f"{key}_sparse": _value(steps),
        "density": steps[-1]["density"],
        **_of_all(folder, steps[-1]["density"]),
        "bytes_up": sent["up"],
        "bytes_down": sent["down"],
        "bytes_payload_up": payload["up"],
        "bytes_payload_down": payload["down"],
        "bytes_dense_fedavg": _dense_bytes(folder, steps[-1]["round"]),
        "bytes_dense_fedavg_measured": False,
        "seconds": steps[-1]["seconds"],
    }


def _of_all(folder: RunFolder, density: float) -> dict[str, Any]:
    """Return what a density of the prunable weights is of all weights."""
    reach = Reach.of(folder.load().layout)
    return {
        "weights": reach.weights,
        "prunable_weights": reach.prunable,
        "kept_of_all_weights": reach.kept_of_all(density),
    }


def _dense_bytes(folder: RunFolder, rounds: int) -> int:
    """All float32 weights and statistics, to and from every device, every round."""
    layout = folder.load().layout
    shapes = [*layout.weights.values(), *layout.stats.values()]
    return 2 * 4 * sum(map(math.prod, shapes)) * rounds * folder.config.devices
