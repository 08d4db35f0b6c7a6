"""Each model of the zoo from a run of two devices to a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedkit.nn.zoo import MODELS, ZooModel
from tests.command_line import fedkit
from tests.sets import slow_but

TASKS = {
    ("maps", "logits"): {"digits": 8, "fashion-mnist": 28},
    ("maps", "logits of pixels"): {"digits-pixels": 8},
    ("series", "logits"): {"digits-rows": 8},
    ("features", "its inputs"): {"digits-reconstruction": 64},
    ("tokens", "logits of steps"): {},  # tests/test_examples.py runs it; it leaves no file
}
"""What a model takes and returns -> tasks of that, and the size of their inputs."""


def task_of(row: ZooModel) -> str:
    """Return the first task whose inputs are large enough, or ""."""
    tasks = TASKS[row.takes, row.returns].items()
    return next((task for task, size in tasks if size >= row.smallest), "")


RUNS = [(name, task_of(row)) for name, row in MODELS.items() if task_of(row)]


@pytest.mark.parametrize(("name", "task"), slow_but([("resnet8", "digits")], RUNS))
def test_a_model_trains_in_a_fleet_and_leaves_as_files_that_compute_its_integers(
    name: str,
    task: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = "--devices 2 --rounds 2 --epochs 2 --examples-per-device 200 --density 0.5 --in-process"
    how = (
        "--engine sparse" if MODELS[name].returns == "logits" else "--engine sparse --partition iid"
    )
    command = f"run --task {task} --model {name} {size} {how} --json"
    assert fedkit(f"{command} --out {tmp_path} --name tiny", monkeypatch) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["engine"].startswith("sparse")
    assert summary["density"] < 0.501
    assert fedkit(f"check {summary['artifact']} --task {task} --layers --json", monkeypatch) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["mismatches"] == 0 and found["examples"] >= 360
