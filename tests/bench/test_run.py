from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from typer.testing import CliRunner

from fedkit.bench import run as bench
from fedkit.bench.run import ENGINES, compare_engines, make_row, run_engine
from fedkit.cli.app import app
from fedkit.cli.tables import rows_table
from fedkit.core.errors import FleetError

TINY = {
    "task": "digits",
    "model": "resnet8",
    "devices": 2,
    "rounds": 1,
    "epochs": 1,
    "examples_per_device": 20,
    "server_epochs": 1,
    "sparse_epochs": 2,
    "test_examples": 50,
}


def run_here(*arguments: str) -> dict[str, Any]:
    assert arguments[:2] == ("-m", "fedkit")
    ended = CliRunner().invoke(app, arguments[2:], catch_exceptions=False)
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_is_told_by_its_own_figures(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[dict[str, Any]] = []

    def record(*arguments: str) -> dict[str, Any]:
        results.append(run_here(*arguments))
        return results[0]

    monkeypatch.setattr(bench, "run_json", record)
    figures = run_engine(TINY, 3, engine)
    summary = results[0]
    assert summary["engine"].startswith(engine)
    for key in ("task", "model", "devices", "rounds", "test_examples"):
        assert summary[key] == TINY[key]
    assert summary["seed"] == 3
    assert figures["accuracy"] == summary["accuracy_sparse"]
    assert figures["seconds"] == summary["seconds"]
    assert 0 < figures["seconds_rounds"] < figures["seconds"] < figures["seconds_total"]


def test_engines_take_turns_and_every_figure_has_its_median(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[int, str]] = []

    def run(config: object, seed: int, engine: str) -> dict[str, float]:
        started.append((seed, engine))
        seconds = {"seconds": float(seed), "seconds_rounds": 0.5, "seconds_total": 10.0 * seed}
        return {**seconds, "accuracy": 1 / seed}

    monkeypatch.setattr(bench, "run_engine", run)
    result = compare_engines(TINY, seeds=(1, 2, 4))
    assert started[:4] == [(1, "sparse"), (1, "torch"), (2, "torch"), (2, "sparse")]
    assert [row["seed"] for row in result["rows"]] == result["seeds"] == [1, 2, 4]
    assert TINY.items() <= result.items()
    assert (result["seconds_sparse"], result["seconds_total_torch"]) == (2.0, 20.0)
    assert (result["ratio"], result["accuracy_torch"]) == (1.0, 0.5)
    table = rows_table(result)
    assert (table.row_count, len(table.columns)) == (3, len(result["rows"][0]))


def test_a_row_sets_both_engines_side_by_side() -> None:
    sparse = {"seconds": 2.0, "seconds_rounds": 1.0, "seconds_total": 8.0, "accuracy": 0.75}
    dense = {"seconds": 7.0, "seconds_rounds": 6.0, "seconds_total": 12.0, "accuracy": 0.76}
    assert make_row(3, {"torch": dense, "sparse": sparse}) == {
        "seed": 3,
        "seconds_sparse": 2.0,
        "seconds_torch": 7.0,
        "ratio": 3.5,
        "seconds_rounds_sparse": 1.0,
        "seconds_rounds_torch": 6.0,
        "ratio_rounds": 6.0,
        "seconds_total_sparse": 8.0,
        "seconds_total_torch": 12.0,
        "ratio_total": 1.5,
        "accuracy_sparse": 0.75,
        "accuracy_torch": 0.76,
        "accuracy_difference_points": -1.0,
    }


def test_a_run_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: str) -> None:
        raise subprocess.CalledProcessError(2, arguments)

    monkeypatch.setattr(bench, "run_json", fail)
    with pytest.raises(FleetError, match="the run of seed 4 on sparse failed; see above"):
        compare_engines(TINY, seeds=(4,))
