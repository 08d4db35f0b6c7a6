from __future__ import annotations

import contextlib
import io
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from fedkit.bench.cell import run_cell
from fedkit.cli import compare as harness
from fedkit.cli.compare import compare
from fedkit.cli.grid import read_grid
from fedkit.config import RunConfig
from fedkit.core.errors import CheckpointError, ConfigError, FleetError
from fedkit.report import plotly_library
from tests.cli.tiny_grid import TINY, grid_file
from tests.processes import left_running, wait_for

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def thread_pool(workers: int) -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Cells run in this process, which has imported all, undrawn; returns which have been run."""
    ran: list[RunConfig] = []

    def run(config: RunConfig) -> dict[str, Any]:
        ran.append(config)
        return run_cell(config)

    monkeypatch.setattr(harness, "run_cell", run)
    monkeypatch.setattr(harness, "_pool", thread_pool)
    # Memory is measured in a process of its own for each cell; tests of cells ask for that.
    memory = {"idle_bytes": 1, "peak_bytes": 2}
    monkeypatch.setattr("fedkit.bench.cell.device_memory", lambda *given: memory)
    monkeypatch.setattr(plotly_library, "is_there", lambda: False)
    return ran


def run(folder: Path, grid: Path | None = None) -> dict[str, Any]:
    log = Console(file=io.StringIO())
    return compare(grid or grid_file(folder), folder / "results", folder / "work", 1, log)


def cell_files(folder: Path) -> list[Path]:
    found = (folder / "work" / "tiny").glob("*.json")
    return sorted(path for path in found if path.name != "grid.json")


def without_times(rows: list[dict[str, Any]]) -> str:
    measured = dict.fromkeys(("seconds", "idle_bytes", "peak_bytes"), 0)
    return json.dumps([{**row, **measured} for row in rows])


# The grid file

BAD = {
    "name = 'a": "grid.toml is not valid TOML",
    "[axes]\nseed = [1]": "name is missing: field required (names the result",
    "name = 'A b'\n[axes]\nseed = [1]": "name is 'A b': string should match",
    "name = 'a'": "axes is missing: field required (table of run keys, each with a list",
    "name = 'a'\n[axes]": "axes is {}: dictionary should have at least 1 item",
    "name = 'a'\n[axes]\nseed = []": "axes.seed is []: list should have at least 1 item",
    "name = 'a'\n[axes]\nseed = 1": "axes.seed is 1: input should be a valid list",
    "name = 'a'\nseed = 1\n[axes]\nseed = [1]": "unknown key 'seed'; allowed: name, run, axes;",
    "name = 'a'\n[axes]\ndensitty = [1]": "unknown key 'densitty'; did you mean 'density'? allowed",
    "name = 'a'\n[run]\nsede = 1\n[axes]\nseed = [1]": "unknown key 'sede'; did you mean 'seed'?",
    "name = 'a'\n[run]\nseed = 1\n[axes]\nseed = [1]": "seed is in [run] and in [axes]; it must be",
    "name = 'a'\n[axes]\ndensity = [0.1, 2]": "density is 2: input should be less than or equal",
    "name = 'a'\n[axes]\ntask = ['nowhere']": "no task 'nowhere'; give one of",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_grid_names_file_key_value_and_rule(text: str, tmp_path: Path) -> None:
    path = grid_file(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        read_grid(path)
    assert BAD[text] in str(raised.value) and str(path) in str(raised.value)


def test_a_missing_grid_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read"):
        read_grid(tmp_path / "nowhere.toml")


def test_dense_runs_that_differ_in_density_are_one_and_seeds_stay_together(tmp_path: Path) -> None:
    cells = read_grid(grid_file(tmp_path)).cells
    assert [(cell.seed, cell.method, cell.density) for cell in cells] == [
        (1, "fedtiny", 0.1),
        (1, "fedtiny", 0.2),
        (1, "dense", 1.0),
        (2, "fedtiny", 0.1),
        (2, "fedtiny", 0.2),
        (2, "dense", 1.0),
    ]
    assert {cell.model for cell in cells} == {"resnet8"}


def test_a_cell_that_cannot_run_is_refused_before_any_runs(
    tmp_path: Path, here: list[RunConfig]
) -> None:
    grid = grid_file(tmp_path, TINY + '[axes]\nexempt = ["first", "tail"]\nseed = [1]\n')
    with pytest.raises(ConfigError, match=r"'tiny': the cell exempt=tail seed=1 cannot run: "):
        run(tmp_path, grid)
    assert here == [] == cell_files(tmp_path)


# Running


def test_a_grid_ends_in_sorted_rows_and_a_second_time_runs_nothing(
    tmp_path: Path, here: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plotly_library, "is_there", lambda: True)
    result = run(tmp_path)
    places = [(row["method"], row["density"], row["seed"]) for row in result["rows"]]
    assert places == [
        ("dense", 1.0, 1),
        ("dense", 1.0, 2),
        ("fedtiny", 0.1, 1),
        ("fedtiny", 0.1, 2),
        ("fedtiny", 0.2, 1),
        ("fedtiny", 0.2, 2),
    ]
    written = json.loads((tmp_path / "results" / "compare-tiny.json").read_text())
    assert written == result
    assert {"benchmark", "name", "command", "commit", "grid", "seeds"} < set(written)
    assert written["grid"]["axes"]["density"] == [0.1, 0.2]
    assert all(row["commit"] == written["commit"] for row in written["rows"])
    assert "Comparison tiny" in (tmp_path / "work" / "tiny" / "report.html").read_text()
    assert len(here) == len(cell_files(tmp_path)) == 6
    assert run(tmp_path)["rows"] == result["rows"]
    assert len(here) == 6


@pytest.mark.slow
def test_a_larger_grid_runs_only_what_is_new_and_other_axes_are_in_its_rows(
    tmp_path: Path, here: list[RunConfig]
) -> None:
    run(tmp_path, grid_file(tmp_path, TINY + "[axes]\nlr = [0.1]\nseed = [1]\n"))
    result = run(tmp_path, grid_file(tmp_path, TINY + "[axes]\nlr = [0.2, 0.1]\nseed = [1]\n"))
    assert [config.lr for config in here] == [0.1, 0.2]
    assert [row["lr"] for row in result["rows"]] == [0.1, 0.2]


@pytest.mark.slow
def test_failed_cells_are_told_at_the_end_and_the_others_are_kept(
    tmp_path: Path, here: list[RunConfig]
) -> None:
    text = TINY.replace("rounds = 1", "rounds = 3") + "[axes]\nlr = [1e30, 0.1]\nseed = [1, 2]\n"
    with pytest.raises(FleetError) as raised:
        run(tmp_path, grid_file(tmp_path, text))
    head, *lines = str(raised.value).splitlines()
    assert head.startswith("2 of 4 cells failed; the others are kept, and no result was written")
    assert [line.partition(":")[0].strip() for line in lines] == [
        "lr=1e+30 seed=1",
        "lr=1e+30 seed=2",
    ]
    assert len(here) == 4 and len(cell_files(tmp_path)) == 2
    assert not (tmp_path / "results" / "compare-tiny.json").exists()


def test_a_fault_of_the_code_is_a_failed_cell_too(
    tmp_path: Path, here: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: RunConfig) -> dict[str, Any]:
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(harness, "run_cell", fail)
    with pytest.raises(FleetError, match=r"seed=1: ZeroDivisionError: of nothing"):
        run(tmp_path, grid_file(tmp_path, TINY + "[axes]\nseed = [1]\n"))


def cut(text: str) -> str:
    return text[: len(text) // 2]


def better(text: str) -> str:
    cell = json.loads(text)
    cell["row"]["accuracy"] += 0.1
    return json.dumps(cell)


def elsewhere(text: str) -> str:
    cell = json.loads(text)
    cell["config"]["lr"] = 0.7
    return json.dumps(cell)


def test_a_damaged_cell_is_refused_by_name(tmp_path: Path, here: list[RunConfig]) -> None:
    grid = grid_file(tmp_path, TINY + "[axes]\nseed = [1]\n")
    result = run(tmp_path, grid)
    (path,) = cell_files(tmp_path)
    sound = path.read_text()
    for damage in (cut, better, elsewhere, lambda _: "[]", lambda _: "\0"):
        path.write_text(damage(sound))
        with pytest.raises(CheckpointError, match="remove that file, and the same") as raised:
            run(tmp_path, grid)
        assert str(path) in str(raised.value)
    path.unlink()
    assert without_times(run(tmp_path, grid)["rows"]) == without_times(result["rows"])


def test_a_grid_that_ends_with_no_number_has_a_result_and_no_page(
    tmp_path: Path, here: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plotly_library, "is_there", lambda: True)
    monkeypatch.setattr(
        harness, "run_cell", lambda config: {**run_cell(config), "accuracy": math.nan}
    )
    result = run(tmp_path, grid_file(tmp_path, TINY + "[axes]\nseed = [1]\n"))
    assert math.isnan(result["rows"][0]["accuracy"])
    assert not (tmp_path / "work" / "tiny" / "report.html").exists()


def test_a_second_process_is_refused(tmp_path: Path, here: list[RunConfig]) -> None:
    lock = tmp_path / "work" / "tiny" / "lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock), pytest.raises(FleetError, match="another process is running this grid"):
        run(tmp_path)
    assert here == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    with pytest.raises(CheckpointError, match=r"work/tiny cannot be made"):
        run(tmp_path)


# Interrupting

CELLS = 6
MANY = TINY + f"[axes]\nseed = {list(range(CELLS))}\n"


@pytest.mark.slow
def test_a_killed_grid_goes_on_and_ends_like_one_that_was_not(
    tmp_path: Path, here: list[RunConfig]
) -> None:
    """Killed with worker processes; resumed, and run at once elsewhere, in this process."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        folder.mkdir()
        grid_file(folder, MANY)
    mark = f"FEDKIT_TEST={tmp_path}"
    arguments = ("--out", str(killed / "results"), "--work", str(killed / "work"), "--workers", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "fedkit", "compare", str(killed / "grid.toml"), *arguments],
        cwd=ROOT,
        env={**os.environ, "FEDKIT_TEST": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: cell_files(killed) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len(cell_files(killed))
    assert process.returncode == -signal.SIGKILL and 1 <= done < CELLS
    wait_for(lambda: not left_running(mark))
    resumed = run(killed, killed / "grid.toml")
    assert len(here) == CELLS - done
    assert without_times(resumed["rows"]) == without_times(run(whole, whole / "grid.toml")["rows"])


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(
    tmp_path: Path, here: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_two(config: RunConfig) -> dict[str, Any]:
        if config.seed == 1:
            raise KeyboardInterrupt
        return run_cell(config)

    with monkeypatch.context() as patch, pytest.raises(FleetError) as raised:
        patch.setattr(harness, "run_cell", run_two)
        run(tmp_path, grid_file(tmp_path, TINY + "[axes]\nseed = [0, 1, 2]\n"))
    kept = len(cell_files(tmp_path))
    assert f"stopped by Ctrl-C; {kept} of 3 cells are kept" in str(raised.value)
    assert len(run(tmp_path, tmp_path / "grid.toml")["rows"]) == 3
    assert len(here) == 3 - kept > 0


def stop() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def kill_worker() -> None:
    (worker,) = multiprocessing.active_children()
    worker.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "message"),
    [(stop, "stopped by Ctrl-C; "), (kill_worker, "a worker process was ended before its cell")],
)
def test_an_interrupted_grid_leaves_no_worker_and_says_how_to_continue(
    tmp_path: Path, end: Callable[[], None], message: str
) -> None:
    def interrupt() -> None:
        wait_for(lambda: cell_files(tmp_path))
        end()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(FleetError, match=message):
        run(tmp_path, grid_file(tmp_path, MANY))
    thread.join()
    assert 1 <= len(cell_files(tmp_path)) < CELLS
    assert not multiprocessing.active_children()
