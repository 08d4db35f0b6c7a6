"""Run a fleet: in this process, or as a Flower simulation behind a real SuperLink."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedkit.checkpoint import RunFolder
from fedkit.config import RunConfig
from fedkit.door import largest_reply
from fedkit.errors import FedkitError
from fedkit.events import EVENTS, EventLog
from fedkit.fleet.processes import toml_pairs
from fedkit.fleet.status import METRICS, FleetStatus
from fedkit.flower.fleet import FlowerFleet
from fedkit.flower.run_config import FOLDER_KEY, Place
from fedkit.method import Fleet
from fedkit.privacy import spent
from fedkit.rounds import Report, Step, run_rounds
from fedkit.task import ACCURACY
from sim.scenario import Scenario
from sim.superlink import SuperLink

APP = Path(__file__).parent / "app"
"""The Flower app that `flwr run` ships."""


def record(
    scenario: Scenario,
    fleet: Fleet,
    path: Path,
    after_step: Callable[[Report], None],
    resume: bool = False,
) -> RunFolder:
    """Run all rounds over `fleet` and store each step as it happens.

    Args:
        scenario: The run's config and data.
        fleet: Its devices.
        path: The run folder, to be made.
        after_step: Called with each step once it is stored.
        resume: The folder is there, and the run goes on after its last step.

    Raises:
        CheckpointError: The run folder exists; or to resume, does not, or is of another run.
        FedkitError: Whatever ended the run; its message is also in `error.txt` of the folder.
    """
    folder = _folder(path, scenario.config, resume)
    with _reason_kept(folder):
        _record(scenario, fleet, folder, after_step)
    return folder


def _folder(path: Path, config: RunConfig, resume: bool) -> RunFolder:
    return RunFolder.resume(path, config) if resume else RunFolder.create(path, config)


@contextmanager
def _reason_kept(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except FedkitError as error:
        (folder.path / "error.txt").write_text(f"{error}\n", encoding="utf-8")
        raise


def _record(
    scenario: Scenario, fleet: Fleet, folder: RunFolder, after_step: Callable[[Report], None]
) -> None:
    server, began = scenario.server(), time.monotonic()
    sent = _message_bytes(fleet)
    for report in run_rounds(server, fleet, scenario.server_data, after=_last_step(folder)):
        before, sent = sent, _message_bytes(fleet)
        travelled = {key: sent[key] - before[key] for key in sent}
        seconds = round(time.monotonic() - began, 3)
        extra: dict[str, Any] = {**travelled, "seconds": seconds}
        if scenario.task.measure is not ACCURACY:
            extra["metric"] = scenario.task.measure.about
        if scenario.config.dp_clip:
            extra |= spent(scenario.config, report.round)
        folder.append(report, server.engine.layout, extra)
        after_step(report)


def _last_step(folder: RunFolder) -> Step | None:
    if not folder.has_checkpoint:
        return None
    stored = folder.load()
    return Step(stored.phase, stored.round, stored.state)


def serve(
    scenario: Scenario, grid: Grid, place: Place, kind: type[FlowerFleet] = FlowerFleet
) -> None:
    """Run all rounds over the nodes that are connected to Flower, and record them.

    Each step is printed, for who follows `flwr run --stream`, and with what happened to devices
    logged in the folder's events. See `record` for what is raised.
    """
    scenario.check()
    config, folder = scenario.config, _folder(place.folder, scenario.config, place.resume)
    print(f"run folder: {folder.path}", flush=True)
    print(f"weights: {scenario.reach.line(config.density)}", flush=True)
    for warning in scenario.warnings:
        print(f"warning: {warning}", flush=True)
    status = FleetStatus.of(folder.path / EVENTS)
    log = EventLog(folder.path / EVENTS, status.add)

    def after_step(step: Report) -> None:
        _print(step, scenario.task.measure.name)
        log("step", **{key: value for key, value in vars(step).items() if key != "state"})
        status.write(folder.path / METRICS)

    log("serve", resume=place.resume, devices=config.devices, rounds=config.rounds)
    with _reason_kept(folder):
        largest = largest_reply(scenario.engine.layout, config)
        fleet = kind(grid, config, largest, _indices(place.nodes), log)
        _record(scenario, fleet, folder, after_step)


def _indices(nodes: Path | None) -> dict[int, int] | None:
    if nodes is None:
        return None
    return {int(node): int(device) for node, device in json.loads(nodes.read_text()).items()}


def _print(step: Report, metric: str) -> None:
    value = "not measured" if step.accuracy is None else f"{step.accuracy:.4f}"
    print(
        f"{step.phase} {step.round}: {metric} {value}, loss {step.loss}, "
        f"density {step.density:.4f}, bytes down {step.bytes_down}, up {step.bytes_up}",
        flush=True,
    )


def _message_bytes(fleet: Fleet) -> dict[str, int]:
    """Bytes of the transport's own messages so far; none where nothing was transported."""
    if not isinstance(fleet, FlowerFleet):
        return {}
    return {"message_bytes_down": fleet.bytes_down, "message_bytes_up": fleet.bytes_up}


class FlowerSimulation(SuperLink):
    """A SuperLink that simulates SuperNodes; use it as a context manager.

    Args:
        log: File that collects what SuperLink, app and workers print.
    """

    def __init__(self, log: Path) -> None:
        super().__init__(log, "--simulation")

    def submit(self, config: RunConfig, folder: Path, workers: int) -> subprocess.Popen[bytes]:
        """Start a run; the returned `flwr run` process ends with it.

        Args:
            config: The run.
            folder: Its run folder; must not exist yet.
            workers: Devices that compute at the same time, one core each.
        """
        values = {**config.model_dump(), FOLDER_KEY: str(folder.absolute())}
        simulation = {
            "num-supernodes": config.devices,
            "client-resources-num-cpus": 1,
            "client-resources-num-gpus": 0.0,
            "init-args-num-cpus": workers,
        }
        return self.run_app(APP, values, "--federation-config", toml_pairs(simulation))
