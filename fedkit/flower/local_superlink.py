"""A SuperLink of our own on this machine, and the Flower programs that work with it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import tomli_w

from fedkit.core import supervise
from fedkit.core.errors import FleetError
from fedkit.core.lookup import MODULES_FROM
from fedkit.flower.processes import (
    ENVIRONMENT,
    Value,
    answers,
    free_port,
    kill_marked,
    past_proxies,
    stop_group,
    tail,
)

_PATIENCE = 600.0
"""Seconds for a SuperLink that lives to answer; under load it takes many times the usual five."""


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
        self._ending = contextlib.ExitStack()
        self._home = Path()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def __enter__(self) -> Self:
        self._home = self._ending.enter_context(supervise.temporary_folder("fedkit-"))
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        settings = (
            f'[superlink]\ndefault = "fedkit"\n[superlink.fedkit]\naddress = "{self.address}"\n'
        )
        (self._home / "config.toml").write_text(settings + "insecure = true\n")
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
            supervise.forget_group(process)
        kill_marked(f"FLWR_HOME={self._home}")
        self._ending.close()

    @property
    def home(self) -> str:
        """Its FLWR_HOME, which marks all that it started."""
        return str(self._home)

    def run_app(
        self, app: Path, run_config: Mapping[str, Value], *flags: str
    ) -> subprocess.Popen[bytes]:
        """Start a run of a Flower app; the returned `flwr run` process ends with it.

        Args:
            app: The app's folder.
            run_config: Keys that replace those of the app.
            flags: Further flags of `flwr run`.
        """
        # In a file, since Flower's pairs of key=value on its command line cannot hold every text.
        keys = self._home / f"run-{len(self._processes)}.toml"
        keys.write_text(tomli_w.dumps(run_config), encoding="utf-8")
        return self.start(
            "flwr", "run", str(app), "fedkit", "--stream", "--run-config", str(keys), *flags
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
        own = {
            "FLWR_HOME": str(self._home / home),
            "PATH": f"{here}{os.pathsep}{given.get('PATH', '')}",
            # A task given as module:name is imported in every worker, but no file beside it takes
            # the place of a module of Python's or of ours.
            MODULES_FROM: str(Path.cwd()),
            "PYTHONSAFEPATH": "1",
            **past_proxies(given),
        }
        own |= self.variables()
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
        supervise.tell_group(process)
        return process

    def variables(self) -> dict[str, str]:
        """Return further variables of the programs that it starts."""
        return {}

    def _wait_until_up(self, superlink: subprocess.Popen[bytes]) -> None:
        """Wait as long as it lives: a machine under load may take minutes."""
        began = time.monotonic()
        while not answers(f"http://{self.address}/health"):
            waited = time.monotonic() - began
            if superlink.poll() is not None or waited > _PATIENCE:
                what = "ended" if superlink.returncode is not None else "did not come up"
                raise FleetError(
                    f"the SuperLink {what} within {waited:.0f} s on {self.address}; its log is "
                    f"{self._log}, ending in:\n{tail(self._log)}"
                )
            time.sleep(0.1)
