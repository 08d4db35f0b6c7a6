"""`fedkit runs`: how far each run of a folder came."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest

from fedkit.cli.runs import runs, runs_table
from fedkit.cli.terminal import Terminal
from fedkit.core.errors import CheckpointError
from tests.report.run_folders import make_run, step


def shown(folder: Path) -> str:
    out = io.StringIO()
    Terminal(file=out, width=80).print(runs_table(runs(folder)))
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a run of each state, and things that are no runs."""
    make_run(tmp_path / "stopped", [step(1, accuracy=0.25), step(2, accuracy=None)], rounds=50)
    make_run(tmp_path / "finished", [step(1), step(3)])
    make_run(tmp_path / "failed", [step(1, loss=math.nan)])
    (tmp_path / "failed/error.txt").write_text("no")
    make_run(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("config.toml")
    return tmp_path


def test_each_run_has_a_row_of_its_own_numbers(folder: Path) -> None:
    rows = {Path(row["run"]).name: row for row in runs(folder)["runs"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "empty": "stopped",
        "failed": "failed",
        "finished": "finished",
        "stopped": "stopped",
    }
    assert rows["stopped"] == {
        "run": str(folder / "stopped"),
        "state": "stopped",
        "round": 2,
        "rounds": 50,
        "metric": "accuracy",
        "value": 0.25,
        "text": "25.00%",
        "density": 0.1,
        "bytes_down": 101 + 102,
        "bytes_up": 100,
    }
    assert rows["empty"]["round"] == 0 and rows["empty"]["density"] is None


def test_a_run_that_is_being_written_is_running(folder: Path) -> None:
    with make_run(folder / "now", [step(1)]).held():
        (row,) = [row for row in runs(folder)["runs"] if row["run"].endswith("now")]
    assert row["state"] == "running"


def test_the_table_fits_80_columns_with_whole_names(folder: Path) -> None:
    name = "2026-11-29-a-name-that-somebody-made-rather-long"
    about = {"name": "mean absolute error of it", "higher_is_better": False, "form": ".4g"}
    make_run(folder / name, [step(1, metric=about, bytes_up=10**13)], rounds=1000)
    text = shown(folder)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text and "10.00 TB" in text and "1/1000" in text
    lines = [line.split("│") for line in text.splitlines() if "│" in line]
    assert any(name in "".join(cells[place].strip() for cells in lines) for place in (1, 2))


def test_hostile_folders_are_text_and_do_not_end_the_list(folder: Path) -> None:
    about = {"name": "x\x1b[2J[red]", "higher_is_better": True, "form": ".2f"}
    bad = make_run(folder / "n\x1b[2J\n[b]x[b]", [step(1, accuracy=math.nan, metric=about)])
    (bad.path / "config.toml").write_text("rounds = [")
    (bad.path / "summary.json").write_text("[1]")
    text = shown(folder)
    assert all(c.isprintable() or c == "\n" for c in text)
    row = next(row for row in runs(folder)["runs"] if row["run"] == str(bad.path))
    assert (row["rounds"], row["value"], row["text"]) == (None, None, "")
    json.dumps(runs(folder), allow_nan=False)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        runs(tmp_path / "none")
    assert runs(tmp_path)["runs"] == []
