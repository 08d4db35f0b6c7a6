"""A fleet of real processes on loopback: what a person starts by hand, started by a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from fedkit.fleet.folder import Fleet, open_fleet
from fedkit.flower.processes import free_port, kill_marked, tail
from fedkit.server.checkpoint import RunFolder
from fedkit.server.events import EVENTS, read_events
from fedkit.sparse.state import ModelState
from tests.fleet.command import command
from tests.processes import HANG

FEDKIT = str(Path(sys.executable).with_name("fedkit"))

Flags = Mapping[str, Any]


def flags(values: Flags) -> list[str]:
    """Config keys as a person types them."""
    return [
        part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", str(value))
    ]


class RealFleet:
    """A fleet in a folder, with its server and devices as processes; a context manager.

    Args:
        folder: Where everything goes.
        config: Keys of the fleet's runs.
        environment: Variables of every process beside those of this one.
        address: Where its server listens; a free port of loopback by itself.
        init: Further flags of `fedkit fleet init`.
    """

    def __init__(
        self,
        folder: Path,
        config: Flags,
        environment: Mapping[str, str] | None = None,
        address: str = "",
        init: tuple[str, ...] = ("--with-data",),
    ) -> None:
        self.folder, self.log = folder, folder / "log"
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = {**os.environ, **(environment or {})}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        address = address or f"127.0.0.1:{free_port()}"
        given = ("--address", address, *init, *flags(config))
        # In this process, which has imported what that needs.
        code, _, said = command("fleet", "init", folder / "fleet", *given)
        assert code == 0, said
        self.fleet: Fleet = open_fleet(folder / "fleet")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._running):
            self.kill(name)

    # Processes ---------------------------------------------------------------------------------

    def start_server(self) -> None:
        """Start the server and wait until devices are registered."""
        before = self.times_said("listening on")
        self._start("server", "server", str(self.fleet.path))
        self.wait_for(lambda: self.times_said("listening on") > before, "the server to listen")

    def start_device(self, index: int, *prefix: str, **variables: str) -> None:
        """Start a device, by a command that goes before its own if one is given."""
        folder = str(self.fleet.device(index))
        self._start(f"device-{index}", "device", folder, prefix=prefix, variables=variables)

    def start_devices(self) -> None:
        for index in range(self.fleet.devices):
            self.start_device(index)

    def restart_device(self, index: int) -> None:
        """Start a device after a power cut as systemd does: again, until it stays up.

        Flower takes a node for connected, and refuses another with its key, until it has missed
        the node's signs of life for a minute.
        """
        for _ in range(20):
            before = self.times_said("SuperNode ID")
            self.start_device(index)
            while self.alive(f"device-{index}") and self.times_said("SuperNode ID") == before:
                time.sleep(0.2)
            if self.alive(f"device-{index}"):
                return
            self.kill(f"device-{index}")
            time.sleep(5)
        raise AssertionError(f"device {index} does not come back; {self.last()}")

    def kill(self, name: str) -> None:
        """Kill a server or device as a power cut does, with all that it started."""
        process = self._running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()
        index = name.removeprefix("device-")
        home = self.fleet.server if name == "server" else self.fleet.device(int(index))
        kill_marked(f"FLWR_HOME={home / 'flwr'}")

    def alive(self, name: str) -> bool:
        return self._running[name].poll() is None

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the fleet to the end."""
        process = self.start_run(*arguments)
        try:
            out, _ = process.communicate(timeout=HANG)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"the run takes longer than {HANG} s; {self.last()}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, out)

    def start_run(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [FEDKIT, "fleet", "run", str(self.fleet.path), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _start(
        self,
        name: str,
        *arguments: str,
        prefix: tuple[str, ...] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        with self.log.open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*prefix, FEDKIT, "fleet", *arguments],
                env={**self.environment, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    # What happened -----------------------------------------------------------------------------

    def times_said(self, words: str) -> int:
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""
        return text.count(words)

    def last(self) -> str:
        """The last words of the fleet's processes."""
        return tail(self.log, 60)

    def said(self, words: str) -> bool:
        """Whether any process of the fleet has said this."""
        return self.times_said(words) > 0

    def changed(self, *arguments: str | Path) -> str:
        """Give a command of `fedkit fleet` that changes the fleet; return what it said."""
        code, _, said = command("fleet", arguments[0], self.fleet.path, *arguments[1:])
        assert code == 0, said + self.last()
        self.fleet = open_fleet(self.fleet.path)
        return said

    def events(self, run: str) -> list[dict[str, Any]]:
        return list(read_events(self.fleet.runs / run / EVENTS))

    def state(self, run: str) -> ModelState:
        return RunFolder.open(self.fleet.runs / run).load().state

    def wait_for(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + HANG
        while not true():
            assert time.monotonic() < deadline, f"waited for {what}; {tail(self.log, 40)}"
            time.sleep(0.1)
