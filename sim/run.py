"""Run a fleet: in this process, or as a Flower simulation behind a real SuperLink."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedkit.checkpoint import RunFolder
from fedkit.config import RunConfig
from fedkit.door import largest_reply
from fedkit.errors import FedkitError, FleetError
from fedkit.events import EVENTS, EventLog
from fedkit.files import write_whole
from fedkit.fleet.processes import toml_pairs
from fedkit.fleet.status import METRICS, FleetStatus
from fedkit.flower.fleet import FlowerFleet
from fedkit.flower.run_config import FOLDER_KEY, RESUME_KEY, Place
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
    with _folder(path, scenario.config, resume) as folder:
        _record(scenario, fleet, folder, after_step)
    return folder


@contextmanager
def _folder(path: Path, config: RunConfig, resume: bool) -> Iterator[RunFolder]:
    """Have a run folder for ourselves, and keep in it why the run ended early."""
    folder = RunFolder.open(path) if resume else RunFolder.create(path, config)
    with folder.held():
        try:
            yield RunFolder.resume(path, config) if resume else folder
        except FedkitError as error:
            with contextlib.suppress(OSError):  # The disk may be full.
                write_whole(path / "error.txt", f"{error}\n".encode())
            raise


def _record(
    scenario: Scenario, fleet: Fleet, folder: RunFolder, after_step: Callable[[Report], None]
) -> None:
    server, began = scenario.server(), time.monotonic() - _seconds_before(folder)
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


def _seconds_before(folder: RunFolder) -> float:
    lines = folder.metrics()
    return float(lines[-1].get("seconds", 0)) if lines else 0.0


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
    with _folder(place.folder, scenario.config, place.resume) as folder:
        print(f"run folder: {folder.path}", flush=True)
        print(f"weights: {scenario.reach.line(scenario.config.density)}", flush=True)
        for warning in scenario.warnings:
            print(f"warning: {warning}", flush=True)
        _serve(scenario, grid, place, kind, folder)


def _serve(
    scenario: Scenario, grid: Grid, place: Place, kind: type[FlowerFleet], folder: RunFolder
) -> None:
    config, status = scenario.config, FleetStatus.of(folder.path / EVENTS)
    log = EventLog(folder.path / EVENTS, status.add)

    def after_step(step: Report) -> None:
        _print(step, scenario.task.measure.name)
        log("step", **{key: value for key, value in vars(step).items() if key != "state"})
        status.write(folder.path / METRICS)

    log("serve", resume=place.resume, devices=config.devices, rounds=config.rounds)
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


LONGEST_RAY_FOLDER = (103 if sys.platform == "darwin" else 107) - len(
    "/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store"
)
"""Bytes of the path of Ray's folder: the system takes sockets' paths up to a length alone."""


def check_ray_folder() -> None:
    """See whether Ray can make its sockets where this process's temporary files are.

    Raises:
        FleetError: The folder's path is too long.
    """
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(name) or tempfile.gettempdir()
    if (length := len(os.fsencode(folder))) > LONGEST_RAY_FOLDER:
        raise FleetError(
            f"{name} is {folder}, {length} bytes long, and Ray, which simulates the devices, has "
            f"its sockets below it, for which {LONGEST_RAY_FOLDER} is the most (AF_UNIX paths are "
            "short): set RAY_TMPDIR to a shorter folder, such as RAY_TMPDIR=/tmp, or run with "
            "--in-process"
        )


class FlowerSimulation(SuperLink):
    """A SuperLink that simulates SuperNodes; use it as a context manager.

    Args:
        log: File that collects what SuperLink, app and workers print.

    Raises:
        FleetError: Ray cannot work where temporary files are.
    """

    def __init__(self, log: Path) -> None:
        super().__init__(log, "--simulation")
        check_ray_folder()

    def variables(self) -> dict[str, str]:
        """Have Ray's files in our own folder, to go with it, where their paths are short enough."""
        fits = len(os.fsencode(self.home)) <= LONGEST_RAY_FOLDER
        return {"RAY_TMPDIR": self.home} if fits and "RAY_TMPDIR" not in os.environ else {}

    def submit(
        self, config: RunConfig, folder: Path, workers: int, resume: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a run; the returned `flwr run` process ends with it.

        Args:
            config: The run.
            folder: Its run folder; must not exist yet, unless the run is to go on.
            workers: Devices that compute at the same time, one core each.
            resume: Whether the folder is there, and the run goes on after its last step.
        """
        own = {FOLDER_KEY: str(folder.absolute()), RESUME_KEY: resume}
        values = {**config.model_dump(), **own}
        simulation = {
            "num-supernodes": config.devices,
            "client-resources-num-cpus": 1,
            "client-resources-num-gpus": 0.0,
            "init-args-num-cpus": workers,
        }
        return self.run_app(APP, values, "--federation-config", toml_pairs(simulation))
