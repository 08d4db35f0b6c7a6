"""Commands that are killed leave nothing behind, and what they began goes on to the same bits."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedkit.cli import job, main
from fedkit.config import make_config
from fedkit.core.errors import CheckpointError, ConfigError
from fedkit.server.checkpoint import RunFolder
from fedkit.server.record import record
from fedkit.server.scenario import with_model_named
from sim.scenario import make_scenario
from tests.ended_commands import GRID, HOLD, assert_all_gone, expected_codes, kill_at
from tests.processes import HANG, started, wait_for
from tests.sets import slow
from tests.whole_runs import KEYS, flags, state, whole_run

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


def fedkit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["fedkit", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


# Going on


@pytest.mark.slow
@pytest.mark.parametrize("changes", [slow({}), {"method": "prunefl", "adjust_every": 4}], ids=str)
def test_a_killed_run_goes_on_to_the_same_bits(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What prunefl's devices sum up between adjustments is in the run's folder."""
    keys, out = {**KEYS, **changes}, tmp_path / "runs"
    run = ["run", *flags(keys), "--in-process", "--out", str(out), "--name", "r"]
    with started(tmp_path, "-m", "fedkit", *run) as process:
        wait_for(lambda: lines(out / "r" / "metrics.jsonl") >= 5 or process.poll() is not None)
        process.kill()
        process.communicate()
        assert_all_gone(tmp_path)
    assert 5 <= lines(out / "r" / "metrics.jsonl") < 2 + keys["rounds"]
    assert fedkit(monkeypatch, "run", "--resume", "r", "--in-process", "--out", str(out)) == 0
    assert state(out / "r") == whole_run(tmp_path / "whole", keys)
    summary = json.loads((out / "r" / "summary.json").read_text())
    assert summary["finished"] and Path(summary["artifact"]).is_file()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after its second round."""

    class StopError(Exception):
        pass

    def stop(report: Any) -> None:
        if report.round == 2:
            raise StopError

    path = tmp_path_factory.mktemp("begun") / "r"
    scenario = make_scenario(with_model_named(make_config(KEYS)))
    with pytest.raises(StopError):
        record(scenario, scenario.local_fleet(), path, stop)
    return path


@pytest.fixture
def out(begun: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun, tmp_path / "r")
    return tmp_path


def test_keys_that_were_given_again_must_be_those_of_the_run(out: Path) -> None:
    assert job.to_resume("r", out, {"density": "0.1", "seed": 1})[0].rounds == KEYS["rounds"]
    with pytest.raises(CheckpointError, match="has another seed, density; a run goes on as it"):
        job.to_resume("r", out, {"density": "0.2", "seed": 2})
    with pytest.raises(ConfigError, match="densitty"):
        job.to_resume("r", out, {"densitty": 0.1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "r", "--density", "0.3"], "has another density"),
        (["--resume", "r", "--quick"], "has another"),
        (["--resume", "r", "--name", "r"], "leave out --name"),
        (["--resume", "nowhere"], "there are: r"),
        (["--resume", "../r"], "cannot name a run"),
        (["--name", "r"], "go on with it: --resume r"),
    ],
)
def test_what_cannot_go_on_is_refused_by_name(
    arguments: list[str],
    message: str,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (out / "r" / "metrics.jsonl").read_bytes()
    assert fedkit(monkeypatch, "run", "--out", str(out), "--in-process", *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert (out / "r" / "metrics.jsonl").read_bytes() == before
    assert [path.name for path in out.iterdir()] == ["r"]


def test_a_finished_run_says_so_and_one_without_its_summary_is_exported(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on = ("run", "--resume", "last", "--in-process", "--out", str(out), "--json")
    assert fedkit(monkeypatch, *go_on) == 0
    first = json.loads(capsys.readouterr().out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert fedkit(monkeypatch, *go_on) == 0
    told = capsys.readouterr()
    assert "is finished; nothing is left to do" in " ".join(told.err.split())
    assert json.loads(told.out) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    artifact = Path(first["artifact"]).read_bytes()
    (out / "r" / "summary.json").unlink()  # as if it was stopped while it measured the artifact
    assert fedkit(monkeypatch, *go_on) == 0
    assert Path(first["artifact"]).read_bytes() == artifact


def test_an_artifact_of_the_model_so_far_is_not_overwritten(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "r" / "model-int8.tflite").write_bytes(b"mine")
    assert fedkit(monkeypatch, "run", "--resume", "r", "--in-process", "--out", str(out)) == 2
    assert "model-int8.tflite is of the model so far" in " ".join(capsys.readouterr().err.split())
    assert (out / "r" / "model-int8.tflite").read_bytes() == b"mine"


# One name, one run


def test_a_name_is_taken_before_the_work_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def work(todo: job.Job, log: Any) -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        with pytest.raises(CheckpointError, match="exists and is never overwritten"):
            RunFolder.create(tmp_path / "r", todo.config)
        raise CheckpointError("enough")

    monkeypatch.setattr(job, "_run_all", work)
    arguments = [*flags(KEYS), "--in-process", "--with-dense", "--out", str(tmp_path)]
    assert fedkit(monkeypatch, "run", *arguments, "--name", "r") == 2
    assert seen == [["r", "r-dense"]]
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken_between_two_looks_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(KEYS)
    RunFolder.create(tmp_path / "r", config)
    monkeypatch.setattr(RunFolder, "check_free", lambda path: None)
    with pytest.raises(CheckpointError, match="exists and is never overwritten"):
        RunFolder.create(tmp_path / "r", config)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_run_that_another_process_is_at_is_refused_at_once(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with started(out, "-c", HOLD, str(out / "r")) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        before = (out / "r" / "metrics.jsonl").read_bytes()
        assert fedkit(monkeypatch, "run", "--resume", "r", "--in-process", "--out", str(out)) == 2
        assert "another process is using the run" in " ".join(capsys.readouterr().err.split())
        assert (out / "r" / "metrics.jsonl").read_bytes() == before
        process.kill()
        process.wait()
        with RunFolder.open(out / "r").held():  # The system has freed the lock.
            pass


def test_who_a_holder_started_may_write_too(out: Path) -> None:
    ask = HOLD.replace('    print("held", flush=True)\n    time.sleep(3600)\n', "    print(1)\n")
    command = [sys.executable, "-c", ask, str(out / "r")]
    with RunFolder.open(out / "r").held():
        assert subprocess.run(command, capture_output=True).stdout == b"1\n"
        with RunFolder.open(out / "r").held():
            pass


# Killed at any moment


def assert_goes_on(
    folder: Path, arguments: list[str], again: list[str], chance: random.Random, longest: float
) -> None:
    """Kill a command over and over, each time at another moment, until it is done."""
    for _ in range(6):
        number = chance.choice(SIGNALS)
        code = kill_at(folder, arguments, chance.uniform(0.2, longest), number)
        assert code in expected_codes(number), code
        if code == 0:
            return
        arguments = again if (folder / "runs" / "r").is_dir() else arguments
    assert kill_at(folder, arguments, HANG, signal.SIGKILL) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("way", ["--in-process", ""])
def test_run_killed_at_any_moment_leaves_nothing_and_goes_on(
    way: str, seed: int, tmp_path: Path
) -> None:
    where = ["--out", str(tmp_path / "runs"), *filter(None, [way])]
    run = ["run", *flags(KEYS), *where, "--name", "r"]
    longest = 12.0 if way else 40.0
    again = ["run", "--resume", "r", *where]
    assert_goes_on(tmp_path, run, again, random.Random(seed), longest)
    assert state(tmp_path / "runs" / "r") == whole_run(tmp_path / "whole", KEYS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_compare_killed_at_any_moment_leaves_nothing_and_goes_on(seed: int, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    places = ["--out", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    command = ["compare", str(tmp_path / "grid.toml"), *places]
    assert_goes_on(tmp_path, command, command, random.Random(seed), 15.0)
    rows = json.loads((tmp_path / "results" / "compare-tiny.json").read_text())["rows"]
    assert [row["seed"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_benchmark_killed_at_any_moment_leaves_nothing(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    number = chance.choice(SIGNALS)
    code = kill_at(tmp_path, ["bench", "fleet", "--quick"], chance.uniform(0.2, 60), number)
    assert code in expected_codes(number)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_killed_server_frees_its_port_for_the_next(number: int, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    made = subprocess.run(
        [sys.executable, "-m", "fedkit", "fleet", "init", str(fleet), "--devices", "1",
         "--insecure", "--address", "127.0.0.1:18765"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    for _ in range(2):
        with started(tmp_path, "-m", "fedkit", "fleet", "server", str(fleet)) as process:
            assert process.stderr is not None
            words = iter(process.stderr.readline, "")
            assert any("listening on" in line for line in words)
            time.sleep(random.Random(number).uniform(0, 1))
            process.send_signal(number)
            process.communicate(timeout=HANG)
            assert_all_gone(tmp_path)


@pytest.mark.slow
def test_of_two_runs_of_one_name_one_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    command = ["-m", "fedkit", "run", *flags(KEYS), "--in-process", "--out", str(out)]
    with (
        started(tmp_path / "one", *command, "--name", "r") as one,
        started(tmp_path / "two", *command, "--name", "r") as two,
    ):
        told = {process: process.communicate(timeout=HANG)[1] for process in (one, two)}
    first, second = sorted((one, two), key=lambda process: process.returncode)
    assert (first.returncode, second.returncode) == (0, 2), told
    assert "exists and is never overwritten" in " ".join(told[second].split())
    assert [path.name for path in out.iterdir()] == ["r"]
    assert state(out / "r") == whole_run(tmp_path / "whole", KEYS)
