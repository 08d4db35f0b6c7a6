"""Run a fleet: in this process, or as a Flower simulation behind a real SuperLink."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedkit.checkpoint import RunFolder
from fedkit.config import RunConfig
from fedkit.errors import FedkitError, FleetError
from fedkit.flower.fleet import FlowerFleet
from fedkit.rounds import Fleet, Report, run_rounds
from sim.scenario import Scenario

FOLDER_KEY = "folder"
"""Run-config key of the run folder; all other keys are those of `RunConfig`."""

APP = Path(__file__).parent / "app"
"""The Flower app that `flwr run` ships."""

ENVIRONMENT = {
    # Nothing is fetched or reported while a fleet runs.
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A worker that takes all cores for each device is 10 to 30 times slower.
    "OMP_NUM_THREADS": "1",
}
"""What the SuperLink and its workers must have been started with."""


def run_keys(run_config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Split a Flower run-config into the keys of `RunConfig` and the run folder."""
    values = dict(run_config)
    folder = str(values.pop(FOLDER_KEY, ""))
    return values, folder or str(Path("runs", time.strftime("%Y%m%d-%H%M%S")).absolute())


def record(
    scenario: Scenario, fleet: Fleet, path: Path, after_step: Callable[[Report], None]
) -> RunFolder:
    """Run all rounds over `fleet` and store each step as it happens.

    Args:
        scenario: The run's config and data.
        fleet: Its devices.
        path: The run folder, to be made.
        after_step: Called with each step once it is stored.

    Raises:
        CheckpointError: The run folder exists.
        FedkitError: Whatever ended the run; its message is also in `error.txt` of the folder.
    """
    folder = RunFolder.create(path, scenario.config)
    server, began = scenario.server(), time.monotonic()
    sent = _message_bytes(fleet)
    try:
        for report in run_rounds(server, fleet, scenario.server_data):
            before, sent = sent, _message_bytes(fleet)
            travelled = {key: sent[key] - before[key] for key in sent}
            seconds = round(time.monotonic() - began, 3)
            folder.append(report, server.engine.layout, {**travelled, "seconds": seconds})
            after_step(report)
    except FedkitError as error:
        (path / "error.txt").write_text(f"{error}\n", encoding="utf-8")
        raise
    return folder


def _message_bytes(fleet: Fleet) -> dict[str, int]:
    """Bytes of the transport's own messages so far; none where nothing was transported."""
    if not isinstance(fleet, FlowerFleet):
        return {}
    return {"message_bytes_down": fleet.bytes_down, "message_bytes_up": fleet.bytes_up}


class FlowerSimulation:
    """A SuperLink of our own with simulated SuperNodes; use it as a context manager.

    It listens on a free loopback port, keeps Flower's files in a temporary FLWR_HOME and is stopped
    with everything it started, so that neither the user's Flower settings nor a SuperLink that is
    already running are touched.

    Args:
        log: File that collects what SuperLink, app and workers print.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._home = tempfile.TemporaryDirectory(prefix="fedkit-flwr-")
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> FlowerSimulation:
        port = _free_port()
        address = f"127.0.0.1:{port}"
        settings = f'[superlink]\ndefault = "fedkit"\n[superlink.fedkit]\naddress = "{address}"\n'
        Path(self._home.name, "config.toml").write_text(settings + "insecure = true\n")
        try:
            superlink = self._start(
                "flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess",
                "--host", "127.0.0.1", "--port", str(port),
            )  # fmt: skip
            self._wait_until_up(superlink, address)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            _stop_group(process)
        _kill_marked(f"FLWR_HOME={self._home.name}")
        self._home.cleanup()

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
        return self._start(
            "flwr", "run", str(APP), "fedkit", "--stream",
            "--run-config", _toml_pairs(values),
            "--federation-config", _toml_pairs(simulation),
        )  # fmt: skip

    def _start(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        here = Path(sys.executable).parent
        paths = [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "FLWR_HOME": self._home.name,
            "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}",
            # A task given as module:name is imported in every worker.
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [str(here / program), *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _wait_until_up(self, superlink: subprocess.Popen[bytes], address: str) -> None:
        deadline = time.monotonic() + 60
        while not _answers(f"http://{address}/health"):
            if superlink.poll() is not None or time.monotonic() > deadline:
                raise FleetError(
                    f"the SuperLink did not come up on {address} within 60 s; its log is "
                    f"{self._log}, ending in:\n{tail(self._log)}"
                )
            time.sleep(0.1)


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a log."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return "\n".join(text.splitlines()[-lines:])


def _toml_pairs(values: Mapping[str, str | int | float]) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _stop_group(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End a process and all it started: ask first, then kill what is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _kill_marked(mark: str, patience: float = 10.0) -> None:
    """Kill what still runs with `mark` in its environment: the SuperLink's and Ray's own children.

    They start sessions of their own and outlive a SuperLink that died without asking them to stop.
    Only Linux shows a process's environment; elsewhere this finds nothing.
    """
    deadline = time.monotonic() + patience
    while (left := _marked(mark)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)  # A killed process takes a moment to go, and may have started another.


def _marked(mark: str) -> list[int]:
    pids = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in environment.read_bytes().split(b"\0"):
                pids.append(int(environment.parent.name))
    return pids
