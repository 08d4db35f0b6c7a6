"""A SuperLink of our own on this machine, and the Flower programs that work with it."""

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
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from fedkit.errors import FleetError

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


Value = str | int | float
"""What a key of a Flower command line can be."""


class SuperLink:
    """A SuperLink and what is started beside it; use it as a context manager.

    It listens on a free loopback port, keeps Flower's files in a temporary FLWR_HOME and is stopped
    with everything it started, so that neither the user's Flower settings nor a SuperLink that is
    already running are touched.

    Args:
        log: File that collects what SuperLink, apps and workers print.
        flags: Further flags of `flower-superlink`.

    Attributes:
        address: Where it listens, as host:port.
    """

    def __init__(self, log: Path, *flags: str) -> None:
        self._log, self._flags = log, flags
        self._home = tempfile.TemporaryDirectory(prefix="fedkit-flwr-")
        self._processes: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def __enter__(self) -> Self:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        settings = (
            f'[superlink]\ndefault = "fedkit"\n[superlink.fedkit]\naddress = "{self.address}"\n'
        )
        Path(self._home.name, "config.toml").write_text(settings + "insecure = true\n")
        try:
            superlink = self.start(
                "flower-superlink", "--insecure", *self._flags, "--isolation", "subprocess",
                "--host", "127.0.0.1", "--port", str(port),
            )  # fmt: skip
            self._wait_until_up(superlink)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            _stop_group(process)
        _kill_marked(f"FLWR_HOME={self._home.name}")
        self._home.cleanup()

    def run_app(
        self, app: Path, run_config: Mapping[str, Value], *flags: str
    ) -> subprocess.Popen[bytes]:
        """Start a run of a Flower app; the returned `flwr run` process ends with it.

        Args:
            app: The app's folder.
            run_config: Keys that replace those of the app.
            flags: Further flags of `flwr run`.
        """
        keys = toml_pairs(run_config)
        return self.start(
            "flwr", "run", str(app), "fedkit", "--stream", "--run-config", keys, *flags
        )

    def start(
        self,
        program: str,
        *arguments: str,
        home: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a Flower program that is stopped with this SuperLink.

        Args:
            program: Its name, like `flower-supernode`.
            arguments: Its command line.
            home: Folder for its files inside the SuperLink's own; two SuperNodes need two.
            environment: Variables beside, or instead of, those of this process.
        """
        here = Path(sys.executable).parent
        given = {**os.environ, **ENVIRONMENT, **(environment or {})}
        paths = [str(Path.cwd()), given.get("PYTHONPATH", "")]
        own = {
            "FLWR_HOME": str(Path(self._home.name, home)),
            "PATH": f"{here}{os.pathsep}{given.get('PATH', '')}",
            # A task given as module:name is imported in every worker.
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [str(here / program), *arguments],
                env={**given, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _wait_until_up(self, superlink: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        while not _answers(f"http://{self.address}/health"):
            if superlink.poll() is not None or time.monotonic() > deadline:
                raise FleetError(
                    f"the SuperLink did not come up on {self.address} within 60 s; its log is "
                    f"{self._log}, ending in:\n{tail(self._log)}"
                )
            time.sleep(0.1)


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a log."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return "\n".join(text.splitlines()[-lines:])


def toml_pairs(values: Mapping[str, Value]) -> str:
    """Write `values` as Flower's command line takes them: key=value, by spaces."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on now."""
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


_EMPTY_LOOKS = 3


def _kill_marked(mark: str, patience: float = 10.0) -> None:
    """Kill what still runs with a variable that starts with `mark`.

    What SuperLink, SuperNode and Ray start are sessions of their own, which outlive a parent that
    died without asking them to stop.
    Only Linux shows a process's environment; elsewhere this finds nothing.
    """
    deadline, looks_left = time.monotonic() + patience, _EMPTY_LOOKS
    while looks_left and time.monotonic() < deadline:
        left = _marked(mark)
        # A process between fork and exec shows no environment, so one empty look proves little.
        looks_left = _EMPTY_LOOKS if left else looks_left - 1
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)  # A killed process takes a moment to go, and may have started another.


def _marked(mark: str) -> list[int]:
    pids = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            entries = environment.read_bytes().split(b"\0")
            if any(entry.startswith(mark.encode()) for entry in entries):
                pids.append(int(environment.parent.name))
    return pids
