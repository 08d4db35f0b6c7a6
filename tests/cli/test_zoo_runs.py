"""Each model of the zoo from a run of two devices to a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedkit.nn.zoo import MODELS
from tests.command_line import fedkit
from tests.sets import slow_but

TASKS = {"digits": 8, "fashion-mnist": 28}
"""Tasks of images, and their height and width."""

RUNS = [
    (name, next(task for task, size in TASKS.items() if size >= smallest))
    for name, (_, smallest) in MODELS.items()
    if smallest <= max(TASKS.values())
]


@pytest.mark.parametrize(("name", "task"), slow_but([("resnet8", "digits")], RUNS))
def test_a_model_trains_in_a_fleet_and_leaves_as_a_file_that_computes_its_integers(
    name: str,
    task: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = "--devices 2 --rounds 2 --epochs 2 --examples-per-device 200 --density 0.5 --in-process"
    command = f"run --task {task} --model {name} {size} --engine sparse --json"
    assert fedkit(f"{command} --out {tmp_path} --name tiny", monkeypatch) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["engine"].startswith("sparse") and summary["density"] < 0.501
    assert fedkit(f"check {summary['artifact']} --task {task}", monkeypatch) == 0
