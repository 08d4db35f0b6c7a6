"""`fedkit report` and `fedkit runs` as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.report.run_folders import make_run, step
from tests.report.typed import typed


def test_report_tells_its_path_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        make_run(Path("runs", name), [step(1)])
    assert typed(monkeypatch, "report", "runs/a", "runs/b", "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {"path": "runs/a/report.html", "bytes": Path(told["path"]).stat().st_size}
    assert typed(monkeypatch, "report", "runs/b", "--out", "x.html") == 0
    assert capsys.readouterr().out == f"x.html ({Path('x.html').stat().st_size / 1e6:.2f} MB)\n"


def test_runs_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/a"), [step(1)])
    assert typed(monkeypatch, "runs", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert (row["run"], row["round"], row["state"]) == ("runs/a", 1, "stopped")
    assert typed(monkeypatch, "runs") == 0
    assert "stopped" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["report", "none"], ["report", "runs/a", "--out", "no/x.html"], ["runs", "none"]]
)
def test_what_is_not_there_is_refused_in_one_message(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/a"), [step(1)])
    assert typed(monkeypatch, *words) == 2
    assert capsys.readouterr().err.startswith("error: ")
