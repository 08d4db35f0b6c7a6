"""A task's metric is shown under its own name, and what a run cannot have learned is told."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkit.config import make_config
from fedkit.report import comparison
from fedkit.report.plots import density_plot
from fedkit.server.scenario import Scenario
from fedkit.sparse.reach import Reach
from fedkit.tasks.metrics import Accuracy
from fedkit.tasks.task import Examples, Metric, Task, accuracy
from tests.command_line import fedkit

SMALL = "--devices 2 --partition iid --density 0.5 --rounds 1 --epochs 1 --in-process --name a"

TASKS = """
import numpy as np
from torch import nn
from torch.nn import functional as F
from fedkit.tasks.task import Examples, Metric, Task

def model():
    return nn.Sequential(nn.Linear(4, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(),
                         nn.Linear(16, 1))

def data(n, seed):
    x = np.random.default_rng(seed).standard_normal((n, 4)).astype(np.float32)
    return Examples(x, (x.sum(1) > 0).astype(np.int64))

def binary_loss(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs[:, 0], targets.float())

def share_right(outputs, targets):
    return ((outputs[:, 0] > 0) == (targets > 0)).mean()

def squared(outputs, targets):
    return ((outputs[:, 0] - targets) ** 2).mean()

BINARY = Task("binary", model, lambda: data(120, 0), lambda: data(60, 1), binary_loss, share_right)
ERROR = Metric(squared, "squared error", higher_is_better=False, form=".3f")
REGRESSION = Task("regression", model, lambda: data(120, 0), lambda: data(60, 1),
                  lambda o, t: F.mse_loss(o[:, 0], t.float()), ERROR)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of tasks; returns it."""
    (tmp_path / "scored_tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "scored_tasks", raising=False)
    return tmp_path


def test_a_binary_head_with_its_own_loss_runs_to_an_artifact(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedkit(f"run --task scored_tasks:BINARY {SMALL} --json", monkeypatch) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out.splitlines()[-1])
    assert summary["metric"] == {"name": "share right", "higher_is_better": True, "form": ".4g"}
    assert 0 <= summary["share_right_sparse"] <= 1 and "share_right_int8" in summary
    assert not [key for key in summary if "accuracy" in key] and "accuracy" not in printed.err
    assert summary["weights"] == 4 * 16 + 2 * 16 + 17 and summary["prunable_weights"] == 80
    assert "weights: 113, of which 80 (70.8%) can be pruned; density 0.5" in printed.err


def test_a_metric_is_shown_by_name_and_format_and_never_as_accuracy(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedkit(f"run --task scored_tasks:REGRESSION {SMALL} --with-dense", monkeypatch) == 0
    printed = capsys.readouterr()
    assert "accuracy" not in printed.out + printed.err
    summary = json.loads((home / "runs" / "a" / "summary.json").read_text())
    assert fedkit("show runs/a", monkeypatch) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"{summary['squared_error_dense_fedavg']:.3f}" in shown
    assert f"{summary['squared_error_sparse']:.3f}" in shown
    assert "(lower is better)" in shown and "%" not in shown.split("density (kept")[0]
    (home / "runs" / "a" / "summary.json").unlink()
    assert fedkit("show runs/a --json", monkeypatch) == 0
    left = json.loads(capsys.readouterr().out)
    assert left["squared_error_sparse"] == summary["squared_error_sparse"]
    assert fedkit("eval runs/a/model-int8.tflite --json", monkeypatch) == 0
    assert (
        json.loads(capsys.readouterr().out)["squared_error_int8"] == summary["squared_error_int8"]
    )


def test_a_model_at_chance_level_gets_a_warning(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    still = "--server-epochs 0 --sparse-epochs 0 --lr 1e-9 --lr-final 1e-9 --selection none"
    few = "--examples-per-device 20 --test-examples 100"
    assert fedkit(f"run {SMALL} {still} {few} --json", monkeypatch) == 0
    printed = capsys.readouterr()
    assert "warning: the final model is at chance level: its accuracy is" in printed.err
    (warning,) = json.loads(printed.out.splitlines()[-1])["warnings"]
    assert f"warning: {warning}" in printed.err


# Classes that no device holds


def of_classes(*classes: int) -> Examples:
    targets = np.array([*classes] * 6)
    return Examples(np.zeros((len(targets), 3), np.float32), targets)


def fleet_of(test: Examples, *devices: Examples, metric: Any = accuracy) -> Scenario:
    task = Task("own", "resnet8", lambda: test, lambda: test, lambda o, t: o.sum(), metric)
    return Scenario(make_config({"density": 1}), task, None, list(devices), test)


def test_classes_that_no_device_holds_get_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scenario, "reach", Reach(10, 10, ()))
    test = of_classes(0, 1, 2, 3)
    (text,) = fleet_of(test, of_classes(0, 1), of_classes(1, 3)).warnings
    assert text.startswith("no device holds examples of class 2, which the test data has")
    assert fleet_of(test, of_classes(0, 1), of_classes(2, 3)).warnings == []
    assert fleet_of(test).warnings == []
    ignoring = fleet_of(of_classes(0, 1, 9), of_classes(0, 1), metric=Accuracy(ignore_index=9))
    assert ignoring.warnings == []
    assert fleet_of(test, of_classes(0), metric=lambda o, t: 0.0).warnings == []


# Comparisons


def rows(**more: Any) -> dict[str, Any]:
    row = {"task": "t", "model": "m", "alpha": 1, "method": "erk", "density": 0.1, "devices": 1}
    row |= {"rounds": 1, "bytes_up": 1, "bytes_down": 1, "seconds": 1.0, **more}
    both = [{**row, "seed": seed, "accuracy": value} for seed, value in ((1, -13.0), (2, -14.0))]
    grid = {"run": {}, "axes": {"seed": [1, 2]}}
    return {"name": "own", "rows": both, "grid": grid, "seeds": [1, 2]}


def test_a_comparison_tells_another_metric_by_its_name() -> None:
    error = Metric(accuracy, "mean error", higher_is_better=False, form=".2f").about
    _, lines = comparison.table(rows(metric=error))
    assert lines == [["erk", "-13.50 ± 0.71, 2e-06 MB"]]
    assert comparison.note(rows(metric=error)).startswith("Mean error, mean ± standard deviation")
    assert comparison.note(rows()).startswith("Accuracy, mean ± standard deviation")


def test_a_plot_of_another_metric_has_its_name_and_its_values() -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    error = Metric(accuracy, "mean error", higher_is_better=False, form=".2f").about
    picture = density_plot(rows(metric=error))
    assert "mean error versus density" in picture and "accuracy" not in picture
    assert re.search(r">.1[34]\.[0-9]+<", picture)  # before it is a minus sign, not a hyphen
    assert "accuracy (%)" in density_plot(rows())
