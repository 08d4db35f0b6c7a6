"""`flwr run sim/app` as people give it: what is wrong is told at once, what is stopped is gone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedkit.flower.local_superlink import SuperLink
from fedkit.flower.processes import marked, toml_pairs
from fedkit.server.checkpoint import RunFolder
from sim.simulation import APP
from tests.fleet.real import FEDKIT
from tests.processes import HANG, wait_for

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "rounds": 2,
    "epochs": 1,
    "server_epochs": 1,
    "sparse_epochs": 1,
    "examples_per_device": 40,
}


class Simulations:
    """A SuperLink for simulations, and what is asked of it by Flower's own commands."""

    def __init__(self, superlink: SuperLink, folder: Path) -> None:
        self._superlink, self.folder, self._runs = superlink, folder, 0

    def begin(self, nodes: int = 3, **keys: Any) -> subprocess.Popen[bytes]:
        """Start a run; the process follows its log."""
        self._runs += 1
        own = {**SMALL, "folder": str(self.run), "backend": "processes", "workers": 2}
        flags = ("--federation-config", toml_pairs({"num-supernodes": nodes}))
        return self._superlink.run_app(APP, {**own, **keys}, *flags)

    @property
    def run(self) -> Path:
        return self.folder / f"run{self._runs}"

    def log(self) -> str:
        """What was printed since the last run was created."""
        text = (self.folder / "log").read_text(errors="replace")
        return text[text.rindex("Successfully started run") :]

    def ask(self, *command: str) -> str:
        """Give a command of Flower, and return what it printed."""
        before = len((self.folder / "log").read_text(errors="replace"))
        assert self._superlink.start("flwr", *command).wait(HANG) == 0
        return (self.folder / "log").read_text(errors="replace")[before:]

    def status(self) -> str:
        """Return how the last run ended, as Flower says it."""
        told = self.ask("ls", "fedkit", "--format", "json")
        runs = json.loads(told[told.index("{\n") : told.rindex("}") + 1])["runs"]
        return str(next(run["status"] for run in runs if run["run-id"] == self.id))

    @property
    def id(self) -> str:
        found = re.match(r"Successfully started run (\d+)", self.log())
        assert found
        return found[1]

    @property
    def home(self) -> str:
        return self._superlink.home

    def started(self) -> set[int]:
        """Return all processes that the SuperLink or a run of it started, and itself."""
        return set(marked(f"FLWR_HOME={self.home}"))

    def simulating(self) -> list[int]:
        """Return the processes that simulate."""
        return [pid for pid in self.started() if b"flwr-simulation" in command(pid)]


class Given(NamedTuple):
    """What `fedkit flwr-run` did with keys of a run."""

    code: int
    lines: list[str]


def given(link: Simulations, tmp_path: Path, nodes: int, **keys: Any) -> Given:
    """Run the app by `fedkit flwr-run`, at the SuperLink that is there."""
    keys = {**SMALL, "folder": str(tmp_path / "run"), **keys}
    flags = ("--run-config", toml_pairs(keys), "--federation-config", f"num-supernodes={nodes}")
    ended = subprocess.run(
        [FEDKIT, "flwr-run", str(APP), "fedkit", *flags],
        env={**os.environ, "FLWR_HOME": link.home},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG,
    )
    return Given(ended.returncode, ended.stdout.splitlines())


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulations]:
    folder = tmp_path_factory.mktemp("link")
    with SuperLink(folder / "log", "--simulation") as superlink:
        yield Simulations(superlink, folder)


@pytest.mark.parametrize("backend", ["processes", "threads", "ray"])
def test_devices_are_as_many_as_supernodes(link: Simulations, backend: str) -> None:
    link.begin(backend=backend).wait(HANG)
    assert RunFolder.open(link.run).is_finished, link.log()
    assert RunFolder.open(link.run).config.devices == 3
    assert link.status() == "finished:completed"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"devices": 2}, "the simulation has 3 SuperNodes and the run 2 devices"),
        ({"devices": 4, "backend": "ray"}, "the simulation has 3 SuperNodes and the run 4 devices"),
        ({"density": 7.0}, "density is 7.0: input should be less than"),
        ({"backend": "dask"}, "backend is 'dask'; choose one of"),
    ],
)
def test_what_is_wrong_is_told_first_and_ends_the_run(
    link: Simulations, keys: dict[str, Any], message: str
) -> None:
    """The deadline is an hour; a run that waited for it would hang this test."""
    link.begin(**keys).wait(HANG)
    log = link.log()
    assert f"error: {message}" in log
    assert log.index("error: ") < log.index("Traceback")
    assert "devices are there; waiting" not in log
    assert link.status() == "finished:failed"
    assert not link.run.exists()
    wait_for(lambda: not link.simulating())


@pytest.mark.parametrize(
    ("nodes", "keys", "message"),
    [
        (3, {"devices": 2}, "the simulation has 3 SuperNodes and the run 2 devices"),
        (1, {"devices": 2}, "the simulation has 1 SuperNodes and the run 2 devices"),
        (3, {"density": 7.0}, "density is 7.0: input should be less than"),
        (3, {"task": "nothing"}, "no task 'nothing'; give one of"),
        (3, {"density": "a lot"}, ""),  # in Flower's own words
        (3, {"densty": 0.1}, ""),
    ],
)
def test_a_command_for_people_returns_what_is_wrong(
    link: Simulations, tmp_path: Path, nodes: int, keys: dict[str, Any], message: str
) -> None:
    found = given(link, tmp_path, nodes, **keys)
    assert found.code == 2
    assert not (tmp_path / "run").exists()
    assert found.lines[-1].startswith(f"error: {message}")
    if message:
        errors = [line for line in found.lines if "error" in line.lower()]
        assert errors[0].startswith(f"error: {message}")


def test_a_command_for_people_returns_0_where_all_is_well(
    link: Simulations, tmp_path: Path
) -> None:
    assert given(link, tmp_path, 2).code == 0
    assert RunFolder.open(tmp_path / "run").is_finished


def begun(link: Simulations, backend: str = "processes") -> list[int]:
    """Start a long run; return its processes, once it trains."""
    link.begin(rounds=100000, backend=backend)
    expected = 3 if backend == "processes" else 1  # the simulation and two workers
    wait_for(lambda: len(link.simulating()) >= expected and (link.run / "metrics.jsonl").is_file())
    return link.simulating()


@pytest.mark.parametrize("backend", ["processes", "threads", "ray"])
def test_nothing_is_left_of_a_run_that_was_stopped(link: Simulations, backend: str) -> None:
    before = link.started()
    assert begun(link, backend)
    assert link.started() > before
    link.ask("stop", link.id, "fedkit")
    wait_for(lambda: link.started() <= before)
    assert link.status() == "finished:stopped"
    assert RunFolder.open(link.run).has_checkpoint


def test_workers_end_with_a_simulation_that_was_killed(link: Simulations) -> None:
    oldest = min(begun(link))
    os.kill(oldest, signal.SIGKILL)
    wait_for(lambda: not link.simulating())
    assert RunFolder.open(link.run).has_checkpoint


def test_a_run_whose_worker_dies_says_so(link: Simulations) -> None:
    first, worker, *_ = sorted(begun(link))
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not link.simulating())
    assert "ended (SIGKILL) before it answered" in link.log()
    assert link.status() == "finished:failed"
    assert first not in link.simulating()
