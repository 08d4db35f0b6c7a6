"""Each long command is killed at random moments: nothing is left, and it goes on to the same bits.

With FEDKIT_MOMENTS=40 each kind of simulation gets 20 kills by SIGKILL.

A command is started, killed, gone on with and killed again until it is done; then the next one is
begun, until so many moments have been tried. SIGKILL and SIGTERM take turns. `FEDKIT_MOMENTS` says
how many moments each command gets, `FEDKIT_SEED` which, and `FEDKIT_MOMENTS_LOG` names a file that
gets a line of JSON for each.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedkit.server.checkpoint import RunFolder
from tests.ended_commands import GRID, expected_codes, kill_at
from tests.fleet.kills import CONFIG
from tests.fleet.real import RealFleet
from tests.processes import HANG
from tests.whole_runs import KEYS, flags, state, whole_run

MOMENTS = int(os.environ.get("FEDKIT_MOMENTS", "4"))
SEED = int(os.environ.get("FEDKIT_SEED", "1"))
LOG = os.environ.get("FEDKIT_MOMENTS_LOG", "")


@dataclass
class Disturber:
    """Kills a command at one moment after the other.

    Attributes:
        what: The command, for the log.
        folder: Marks its processes.
        longest: Seconds in which the moments are; `undisturbed` measures them.
        tried: Moments so far.
    """

    what: str
    folder: Path
    longest: float = 0.0
    tried: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(f"{SEED} {self.what}")

    def undisturbed(self, arguments: list[str]) -> None:
        """Let the command end by itself; the moments are in the time that it takes."""
        begun = time.monotonic()
        assert kill_at(self.folder, arguments, HANG, signal.SIGKILL) == 0
        self.longest = time.monotonic() - begun

    def until_done(self, arguments: list[str], resume: list[str], run: Path) -> None:
        """Kill until the command is done, or until all moments are tried; end it in peace then."""

        def again() -> list[str]:
            return resume if run.is_dir() else arguments

        code = self._kill(arguments)
        while code != 0 and self.tried < MOMENTS:
            code = self._kill(again())
        if code != 0:
            assert kill_at(self.folder, again(), HANG, signal.SIGKILL) == 0

    def _kill(self, arguments: list[str]) -> int:
        number = (signal.SIGKILL, signal.SIGTERM)[self.tried % 2]
        seconds = self._chance.uniform(0.2, self.longest)
        code = kill_at(self.folder, arguments, seconds, number)
        self._log(signal=number.name, seconds=round(seconds, 2), code=code)
        # 2: what an earlier command sent to a fleet's server has taken the name in the meantime.
        allowed = expected_codes(number) | (
            {2} if "fleet run" in self.what and "--name" in arguments else set()
        )
        assert code in allowed, code
        self.tried += code != 0
        return code

    def _log(self, **values: object) -> None:
        if LOG:
            with Path(LOG).open("a") as file:
                file.write(json.dumps({"command": self.what, "seed": SEED, **values}) + "\n")


PARTLY = {"devices": 6, "devices_per_round": 2, "availability": "random:0.7"}
"""A part of the devices each round, of those that are there."""

KINDS: dict[str, dict[str, object]] = {
    "all": {},
    "partly": {**PARTLY, "uplink_bits": 4},
    "partly, spare": {**PARTLY, "over_selection": 0.5, "uplink_bits": 4},
    "partly, prunefl": {**PARTLY, "method": "prunefl", "adjust_every": 4},
    "partly, feddst": {**PARTLY, "method": "feddst"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "way", [["--in-process"], [], ["--backend", "threads"], ["--backend", "ray"]], ids=str
)
def test_run(way: list[str], kind: str, tmp_path: Path) -> None:
    keys = {**KEYS, **KINDS[kind]}
    disturber = Disturber(" ".join(["run", kind, *way]), tmp_path)
    wanted, out = whole_run(tmp_path / "whole", keys), tmp_path / "runs"
    disturber.undisturbed(["run", *flags(keys), "--out", str(out), "--name", "r", *way])
    for index in itertools.takewhile(lambda _: disturber.tried < MOMENTS, itertools.count()):
        name, where = f"r{index}", ["--out", str(out), *way]
        run = ["run", *flags(keys), *where, "--name", name]
        resume = ["run", "--resume", name, *where]
        disturber.until_done(run, resume, out / name)
        assert state(out / name) == wanted
        assert json.loads((out / name / "summary.json").read_text())["finished"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["r", *(f"r{i}" for i in range(index + 1))]
    )


@pytest.mark.slow
def test_compare(tmp_path: Path) -> None:
    """The rows of each table are those of one that nobody disturbed."""
    disturber = Disturber("compare", tmp_path)
    (tmp_path / "grid.toml").write_text(GRID)

    def command(place: str) -> list[str]:
        folder = tmp_path / place
        parts = ["--out", str(folder), "--work", str(folder / "work")]
        return ["compare", str(tmp_path / "grid.toml"), *parts]

    def rows(place: str) -> list[dict[str, object]]:
        told = json.loads((tmp_path / place / "compare-tiny.json").read_text())["rows"]
        measured = ("seconds", "idle_bytes", "peak_bytes", "commit")
        return [{k: v for k, v in r.items() if not any(m in k for m in measured)} for r in told]

    disturber.undisturbed(command("whole"))
    for index in itertools.takewhile(lambda _: disturber.tried < MOMENTS, itertools.count()):
        disturber.until_done(command(f"c{index}"), command(f"c{index}"), tmp_path)
        assert rows(f"c{index}") == rows("whole")


@pytest.mark.slow
def test_bench_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one works; none leaves a folder. Moments are from the start into its first run."""
    disturber = Disturber("bench fleet", tmp_path, longest=90.0)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    command = ["bench", "fleet", "--quick"]
    disturber.until_done(command, command, tmp_path)
    assert not list((tmp_path / "tmp").glob("fedkit-bench-*"))


@pytest.mark.slow
def test_fleet_run(tmp_path: Path) -> None:
    """A live fleet of two devices serves all runs, and only their commands are killed."""
    disturber = Disturber("fleet run", tmp_path / "mark")
    with RealFleet(tmp_path, CONFIG) as fleet:
        fleet.start_server()
        fleet.start_devices()
        disturber.undisturbed(["fleet", "run", str(fleet.fleet.path), "--name", "whole"])
        wanted = state(fleet.fleet.runs / "whole")
        for index in itertools.takewhile(lambda _: disturber.tried < MOMENTS, itertools.count()):
            name, runs = f"r{index}", fleet.fleet.runs
            run = ["fleet", "run", str(fleet.fleet.path), "--name", name]
            resume = ["fleet", "run", str(fleet.fleet.path), "--resume", name]
            disturber.until_done(run, resume, runs / name)
            assert state(runs / name) == wanted
            assert len(RunFolder.open(runs / name).metrics()) == 2 + CONFIG["rounds"]
