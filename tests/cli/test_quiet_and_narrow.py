"""--quiet, --json and 80 columns: for every command that has a table."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path

import click
import pytest
import torch
import typer
from torch import nn

from fedkit.cli.app import app
from tests.cli.conftest import SMALL
from tests.command_line import fedkit
from tests.sets import slow


def test_every_command_prints_json_and_can_be_quiet() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    for name in ("fleet", "flwr-run"):  # they talk to Flower's commands, which print
        del group.commands[name]
    for name, command in group.commands.items():
        options = {option for each in command.params for option in each.opts}
        assert {"--json", "--quiet"} <= options, name


@pytest.mark.parametrize("command", ["show", "inspect", "runs --json"])
def test_quiet_prints_no_table_and_all_json(
    command: str, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = out if command.startswith("runs") else out / "done"
    assert fedkit(f"{command} {path} --quiet", monkeypatch) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert bool(printed.out) == command.endswith("--json")
    assert command == "show" or printed.out == "" or json.loads(printed.out)
    assert fedkit(f"show {path / 'nope'} -q", monkeypatch) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert fedkit(f"{command} {path}", monkeypatch) == 0  # the next command is not quiet
    assert capsys.readouterr().out


@pytest.mark.slow
def test_a_quiet_run_prints_its_json_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedkit(f"run --out {tmp_path} --name r {SMALL} --quiet --json", monkeypatch) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and json.loads(printed.out)["finished"]


LONG = ("support", "bench wire --quick")
"""Whose words the tests of tables look at."""

TABLES = (
    "show {run}",
    "runs {out}",
    "inspect {run}",
    "inspect {run}/model-int8.tflite",
    "eval {run}/model-int8.tflite",
    "check {run}/model-int8.tflite --layers --examples 20",
    "report {run} --out {out}/report.html",
    "export {run} --target c99 --name in_{number}",
    "plan {out}/{number}.plan",
    slow("import {out}/net.onnx"),
    *map(slow, LONG),
)


@pytest.mark.parametrize("command", TABLES)
def test_no_command_prints_more_than_80_columns_or_cuts_a_word(
    command: str, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = out / "done"
    monkeypatch.setenv("COLUMNS", "80")
    if "net.onnx" in command:
        write_onnx(out / "net.onnx")
    words = command.format(run=run, out=out, number=abs(hash(command)))
    shutil.rmtree(run / "model-int8-c99", ignore_errors=True)
    assert fedkit(words, monkeypatch) == 0
    narrow = capsys.readouterr().out
    assert narrow and max(map(len, narrow.splitlines())) <= 80
    if command in LONG:
        return
    monkeypatch.setenv("COLUMNS", "1000")
    shutil.rmtree(run / "model-int8-c99", ignore_errors=True)
    for path in (out / "report.html", *out.glob("*.plan")):
        path.unlink(missing_ok=True)
    assert fedkit(words, monkeypatch) == 0
    assert cut_words(capsys.readouterr().out, narrow) == set()


def write_onnx(path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own
        torch.onnx.export(net, (torch.zeros(1, 1, 8, 8),), str(path), dynamo=False)


def cut_words(wide: str, narrow: str) -> set[str]:
    """Words of what a wide terminal shows that a narrow one does not show whole.

    Measured times differ from one time to the next; long paths may break behind slashes.
    """
    told = set(re.split(r"[^\w.%/-]+", narrow))
    words = {part for word in re.split(r"[^\w.%/-]+", wide) for part in re.split("(?<=/)", word)}
    parts = told | {part for word in told for part in re.split("(?<=/)", word)}
    return {word for word in words - parts if not re.fullmatch(r"[\d.,%-]*", word)}
