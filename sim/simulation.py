"""A fleet as a Flower simulation: in this process, or behind a SuperLink of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from flwr.app import Context

from fedkit.config import RunConfig
from fedkit.core.errors import FleetError
from fedkit.device.round import Device
from fedkit.flower.client_app import InThreads, in_context_and_folder, make_client_app
from fedkit.flower.local_superlink import SuperLink
from fedkit.flower.processes import toml_pairs
from fedkit.flower.run_config import FOLDER_KEY, RESUME_KEY, RunPlace
from fedkit.flower.runtime import BACKEND_KEY, WORKERS_KEY, Simulated, simulation
from fedkit.flower.serve import serve
from fedkit.flower.workers import Backend, resolved
from fedkit.server.rounds import Report
from fedkit.server.scenario import Scenario

APP = Path(__file__).parent / "app"
"""The Flower app that `flwr run` ships."""

RAY_ADDRESS = "RAY_ADDRESS"
"""Variable by which Ray, and so Flower's backend, joins a cluster instead of starting one."""

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
            "short): set RAY_TMPDIR to a shorter folder, such as RAY_TMPDIR=/tmp, or run without "
            "--backend ray"
        )


def simulate(
    scenario: Scenario,
    place: RunPlace,
    backend: Backend,
    workers: int,
    after_step: Callable[[Report], None],
    log: Path,
) -> None:
    """Run a fleet through Flower in this process, and record it; no SuperLink is started.

    Args:
        scenario: The run.
        place: Where it is recorded.
        backend: processes, threads, or auto.
        workers: Devices that compute at the same time.
        after_step: Called with each step once it is stored.
        log: File for what server and devices print.

    Raises:
        FedkitError: What ended the run; see `fedkit.server.record.record`.
    """

    def device_of(context: Context) -> Device:
        return scenario.device(int(context.node_config["partition-id"]))

    app = make_client_app(device_of, InThreads(in_context_and_folder))
    keys = {FOLDER_KEY: str(place.folder)}
    chosen = resolved(backend, scenario.config.accelerator)
    given = Simulated(app, scenario.config.devices, keys, chosen, workers, log)
    with log.open("a") as file, redirect_stdout(file), simulation(given) as grid:
        serve(scenario, grid, place, after_step=after_step)


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
        self,
        config: RunConfig,
        folder: Path,
        workers: int,
        resume: bool = False,
        backend: Backend = "ray",
    ) -> subprocess.Popen[bytes]:
        """Start a run; the returned `flwr run` process ends with it.

        Args:
            config: The run.
            folder: Its run folder; must not exist yet, unless the run is to go on.
            workers: Devices that compute at the same time, one core each; where the environment
                names a cluster that is there (`RAY_ADDRESS`), as many as that has cores.
            resume: Whether the folder is there, and the run goes on after its last step.
            backend: What runs the devices.
        """
        own = {FOLDER_KEY: str(folder.absolute()), RESUME_KEY: resume}
        own |= {BACKEND_KEY: backend, WORKERS_KEY: workers}
        values = {**config.as_dict(), **own}
        simulation = {
            "num-supernodes": config.devices,
            "client-resources-num-cpus": 1,
            "client-resources-num-gpus": 0.0,
        }
        if RAY_ADDRESS not in os.environ:  # a cluster that is there has the cores that it has
            simulation["init-args-num-cpus"] = workers
        return self.run_app(APP, values, "--federation-config", toml_pairs(simulation))
