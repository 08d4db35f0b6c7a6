"""The main job: run a fleet, export what it learned, measure the artifact."""

from __future__ import annotations

import math
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edge.artifact import manifest_path
from fedkit.cli.ending import how_it_ended
from fedkit.cli.export import Form, artifact_paths, check_exportable, export, tell
from fedkit.cli.summary import SUMMARY, figures, last_value, show
from fedkit.cli.tables import size
from fedkit.config import RunConfig, make_config
from fedkit.core.errors import CheckpointError, ExportError, FleetError, StoppedError
from fedkit.core.names import check_name, find_run
from fedkit.core.provenance import made_by
from fedkit.core.side_by_side import cores
from fedkit.core.signals import STOPS, stop_number, stop_words
from fedkit.flower.processes import tail
from fedkit.flower.run_config import RunPlace
from fedkit.flower.workers import Backend, resolved
from fedkit.methods.registry import resolve
from fedkit.report.loggers import LOGGERS, logged, require
from fedkit.report.partition_picture import write_picture
from fedkit.server.checkpoint import RunFolder
from fedkit.server.record import record
from fedkit.server.scenario import Scenario, with_model_named
from fedkit.tasks.task import ACCURACY, Metric
from sim.scenario import make_scenario
from sim.simulation import FlowerSimulation, check_ray_folder, simulate

FLOWER_LOG = "flower.log"
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """A run to be made or to go on with, and how.

    Attributes:
        config: Of the run.
        path: Its run folder.
        with_dense: Run dense FedAvg of the same length too, into `<path>-dense`.
        in_process: Run without Flower.
        backend: What runs devices through Flower.
        workers: Devices that compute at the same time; 0: one per core.
        resume: The folder is there, and the run goes on after its last step.
        asked: What to export, if somebody asked; otherwise what `export` makes by itself, if the
            model can be exported.
        logs: Names of loggers that get every step too.
    """

    config: RunConfig
    path: Path
    with_dense: bool = False
    in_process: bool = False
    backend: Backend = "auto"
    workers: int = 0
    resume: bool = False
    asked: Form | None = None
    logs: tuple[str, ...] = ()

    @property
    def on_ray(self) -> bool:
        """Whether Flower's own backend runs the devices."""
        return self.backend == "ray" and not self.in_process

    @property
    def runs(self) -> list[tuple[RunConfig, Path]]:
        """Every run of the job: its config and its folder."""
        runs = [(self.config, self.path)]
        if self.with_dense:
            dense = self.config.changed(method="dense", density=1.0)
            runs.append((dense, dense_folder(self.path)))
        return runs


def checked_backend(name: str, accelerator: str) -> Backend:
    """Return what is to run devices through Flower.

    Raises:
        ConfigError: There is no such backend, or it does not know accelerators.
    """
    return resolved(name, accelerator)


def folder_for(config: RunConfig, name: str, out: Path) -> Path:
    """Return the path of a run folder: `out/name`, or one named by time and task.

    Raises:
        ConfigError: The name is not valid.
        CheckpointError: It exists.
    """
    task = config.task.rpartition(":")[2]
    path = out / check_name(name or f"{time.strftime('%Y%m%d-%H%M%S')}-{task}")
    RunFolder.check_free(path)
    RunFolder.check_free(dense_folder(path))
    return path


def dense_folder(path: Path) -> Path:
    """Return where dense FedAvg lies that was run beside a run."""
    return path.with_name(f"{path.name}-dense")


def to_resume(name: str, out: Path, given: Mapping[str, Any]) -> tuple[RunConfig, Path]:
    """Return the config and the folder of the run `name`, to go on with it.

    Args:
        name: Of a run in `out`; last: the last one.
        out: Folder of all run folders.
        given: Keys that were given beside it; they must have the values of that run.

    Raises:
        ConfigError: It is not a name, or a given value breaks its rule.
        CheckpointError: There is no such run, or it has other values.
    """
    folder = RunFolder.open(find_run(out, name))
    config = folder.config
    folder.check_same(make_config({**config.as_dict(), **given}))
    return config, folder.path


def run_job(job: Job, log: Console) -> dict[str, Any]:
    """Run, export and measure; return the summary, which is also in the run folder.

    Raises:
        CheckpointError: A run folder is taken, cannot be written or is damaged.
        ConfigError: A logger is unknown, or its package is not installed.
        ExportError: The model cannot be exported, which is found before anything runs if an export
            was asked for; or it is known only of what was learned.
        FedkitError: Whatever else ended the job.
    """
    require(job.logs)
    if job.resume and (summary := _finished(job.path)) is not None:
        log.print(f"the run in {job.path} is finished; nothing is left to do", soft_wrap=True)
        return summary
    job = replace(job, config=with_model_named(resolve(job.config)))
    if job.on_ray:
        check_ray_folder()
    scenario = make_scenario(job.config)
    scenario.check()
    log.print(f"engine: {scenario.engine_notice}", soft_wrap=True, markup=False)
    log.print(f"weights: {scenario.reach.line(job.config.density)}", soft_wrap=True, markup=False)
    if scenario.memory_notice:
        log.print(f"memory: {scenario.memory_notice}", soft_wrap=True, markup=False)
    _warn(scenario.warnings, log)
    refusal = _refusal(scenario, job.asked, log)
    for name in job.logs:
        log.print(f"log: {LOGGERS[name].where(job.path)}", soft_wrap=True, markup=False)
    with _taken(job):
        return _run_taken(job, scenario, refusal, log)


def _finished(path: Path) -> dict[str, Any] | None:
    """Return the summary of a run that came to its end, if it did."""
    return show(path) if (path / SUMMARY).is_file() else None


@contextmanager
def _taken(job: Job) -> Iterator[None]:
    """Have the job's folders for ourselves before any work begins; leave none without a step."""
    with ExitStack() as stack:
        made = []
        try:
            for config, path in job.runs:
                if not job.resume:
                    made.append(RunFolder.create(path, config))
                elif not path.exists():  # dense FedAvg, asked for later
                    RunFolder.create(path, config)
                stack.enter_context(RunFolder.open(path).held())
            if job.resume:
                _make_room(RunFolder.open(job.path), job.asked or Form())
            yield
        except BaseException:
            for folder in made:
                folder.remove_if_empty()
            raise


def _make_room(folder: RunFolder, form: Form) -> None:
    """Take away what an export left that was stopped; the same is made again.

    Raises:
        CheckpointError: There are artifacts of a model that the run is about to leave behind.
    """
    for path in artifact_paths(folder, form).values():
        for each in (path, manifest_path(path)):
            if each.exists() and not folder.is_finished:
                raise CheckpointError(
                    f"{each} is of the model so far, and this run makes one of its last model; "
                    "move it away, then go on"
                )
            if each.is_dir():
                shutil.rmtree(each)
            else:
                each.unlink(missing_ok=True)


def _run_taken(job: Job, scenario: Scenario, refusal: str, log: Console) -> dict[str, Any]:
    began = time.monotonic()
    _run_all(job, log)
    folder = RunFolder.open(job.path)
    write_picture(folder)
    summary = {**figures(folder), "engine": scenario.engine_notice, **made_by()}
    if job.with_dense:
        summary |= _dense_figures(job.path)
    if refusal:
        summary["export_refused"] = refusal
    at_chance = _at_chance(summary, scenario)
    if warnings := [*scenario.warnings, *at_chance]:
        summary["warnings"] = warnings

    def finish() -> None:
        summary.update(seconds_total=round(time.monotonic() - began, 1), finished=True)
        folder.write_json(SUMMARY, summary)

    try:
        if not refusal:
            summary |= _exported(export(folder, scenario, log, job.asked))
    except Exception as error:
        # Hours of training must not depend on an unsupported layer.
        finish()
        if isinstance(error, ExportError):
            raise ExportError(f"{error}. The run is complete: fedkit show {job.path}") from error
        raise
    finish()
    _warn(at_chance, log)
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
    dense = figures(RunFolder.open(dense_folder(path)))
    key = Metric.of(dense.get("metric")).key
    return {
        f"{key}_dense_fedavg": dense[f"{key}_sparse"],
        "bytes_dense_fedavg": dense["bytes_up"] + dense["bytes_down"],
        "bytes_dense_fedavg_measured": True,
    }


# Running -------------------------------------------------------------------------------------


def _run_all(job: Job, log: Console) -> None:
    left = [(config, path) for config, path in job.runs if not RunFolder.open(path).is_finished]
    workers = job.workers or cores()
    try:
        if job.in_process:
            _run_here(left, workers, job.logs, log)
        elif job.on_ray:
            _run_ray(left, workers, job.logs, log)
        else:
            _run_flower(left, job.backend, workers, job.logs, log)
    except STOPS as stop:
        raise StoppedError(f"{stop_words(stop)}; {_kept(job)}", stop_number(stop)) from None


def _kept(job: Job) -> str:
    """Say what is left of a job that was stopped, and how it goes on."""
    done = [path for _, path in job.runs if RunFolder(path).has_checkpoint]
    if not done:
        return "no round was finished"
    out = "" if job.path.parent == Path("runs") else f" --out {shlex.quote(str(job.path.parent))}"
    return (
        f"what was learned so far is kept; look at it with: fedkit show {done[0]}; go on with: "
        f"fedkit run --resume {job.path.name}{out}"
    )


def _run_here(
    runs: list[tuple[RunConfig, Path]], workers: int, logs: Sequence[str], log: Console
) -> None:
    for config, path in runs:
        scenario = make_scenario(config)
        with _progress(config, path, logs, log) as update:
            fleet = scenario.local_fleet(path, workers)
            record(scenario, fleet, path, after_step=lambda _: update(), resume=True)


def _run_flower(
    runs: list[tuple[RunConfig, Path]],
    backend: Backend,
    workers: int,
    logs: Sequence[str],
    log: Console,
) -> None:
    for config, path in runs:
        with _progress(config, path, logs, log) as update:
            simulate(
                *(make_scenario(config), RunPlace(path, resume=True), backend, workers),
                *(lambda _, update=update: update(), path / FLOWER_LOG),
            )


def _run_ray(
    runs: list[tuple[RunConfig, Path]], workers: int, logs: Sequence[str], log: Console
) -> None:
    if not runs:
        return
    first = runs[0][1]
    flower_log = first.with_name(f"{first.name}.flower.log")
    if (first / FLOWER_LOG).is_file():  # of the part before; what follows is added to it
        (first / FLOWER_LOG).replace(flower_log)
    try:
        with FlowerSimulation(flower_log) as simulation:
            for config, path in runs:
                (path / "error.txt").unlink(missing_ok=True)
                with _progress(config, path, logs, log) as update:
                    process = simulation.submit(config, path, workers, resume=True)
                    while process.poll() is None:
                        time.sleep(_POLL_SECONDS)
                        update()
                    update()
                _check_finished(config, path, process.returncode, flower_log)
    finally:
        if first.is_dir() and flower_log.is_file():
            flower_log.replace(first / FLOWER_LOG)


def _check_finished(config: RunConfig, path: Path, code: int, flower_log: Path) -> None:
    said, done = how_it_ended(path)
    if said:
        raise FleetError(f"the run in {path} failed: {said}")
    if done < config.rounds:
        RunFolder(path).check_writable()
        raise FleetError(
            f"the Flower run ended (exit code {code}) after {done} of {config.rounds} rounds; go "
            f"on with --resume {path.name}. Flower's log ends in:\n{tail(flower_log)}"
        )


@contextmanager
def _progress(
    config: RunConfig, path: Path, logs: Sequence[str], log: Console
) -> Iterator[Callable[[], None]]:
    """Show a bar that follows the metrics file of a run, and hand its lines on to loggers."""
    text = "{task.description} {task.completed:.0f}/{task.total:.0f} {task.fields[status]}"
    columns = (TextColumn(text), BarColumn(bar_width=20), TimeElapsedColumn())
    with logged(path, logs) as write, Progress(*columns, console=log) as progress:
        bar = progress.add_task(config.method, total=config.rounds, status="starting")

        def update() -> None:
            metrics = RunFolder(path).metrics()
            write(metrics)
            if metrics:
                progress.update(bar, completed=metrics[-1]["round"], status=_status(metrics))

        yield update


def _status(metrics: list[dict[str, Any]]) -> str:
    last = metrics[-1]
    sent = sum(step["bytes_up"] + step["bytes_down"] for step in metrics)
    metric = Metric.of(last.get("metric"))
    value = metric.text(last_value(metrics))
    return f"{metric.name} {value} density {last['density']:.1%} {size(sent)}"
