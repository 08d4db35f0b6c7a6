"""A SuperLink of our own on this machine, and the Flower programs that work with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from fedkit.errors import FleetError
from fedkit.fleet.processes import (
    ENVIRONMENT,
    Value,
    answers,
    free_port,
    kill_marked,
    stop_group,
    tail,
    toml_pairs,
)


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
            # Flower's own, but that no other account of this machine may give it orders.
            superlink = self.start(
                "python", "-P", "-m", "fedkit.flower.superlink", "--insecure", *self._flags,
                "--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port),
            )  # fmt: skip
            self._wait_until_up(superlink)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            stop_group(process)
        kill_marked(f"FLWR_HOME={self._home.name}")
        self._home.cleanup()

    @property
    def home(self) -> str:
        """Its FLWR_HOME, which marks all that it started."""
        return self._home.name

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
        while not answers(f"http://{self.address}/health"):
            if superlink.poll() is not None or time.monotonic() > deadline:
                raise FleetError(
                    f"the SuperLink did not come up on {self.address} within 60 s; its log is "
                    f"{self._log}, ending in:\n{tail(self._log)}"
                )
            time.sleep(0.1)
