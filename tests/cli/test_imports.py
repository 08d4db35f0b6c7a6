"""What a command imports is what it takes a person's time for: looked at here, not timed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from torch import nn

import edge
import fedkit
from fedkit.cli import summary
from fedkit.cli.app import app
from tests.fresh import HEAVY, imported_by, python_of
from tests.sets import slow

GROUP = typer.main.get_command(app)
NOT_FOR_HELP = {*HEAVY, "scipy", "safetensors", "cryptography", "prometheus_client"}
"""Even the help of commands whose keys are those of a config needs no more than numpy for it."""

OWN_TASK = """
import numpy as np
from fedkit import Examples, Task

def data():
    rng = np.random.default_rng(0)
    return Examples(rng.random((40, 1, 8, 8), np.float32), rng.integers(0, 3, 40))

def model():
    from torch import nn
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(144, 3))

TASK = Task("own", model, data, data)
"""


def commands() -> list[str]:
    """Every command of `fedkit`, and the groups, as they are typed."""
    found = [""]
    for name, command in GROUP.commands.items():  # type: ignore[attr-defined]
        found += [name, *(f"{name} {each}" for each in getattr(command, "commands", ()))]
    return found


def command(line: str) -> str:
    """The code that runs a command of `fedkit` and goes on after it."""
    return (
        "import sys\nfrom fedkit.cli import main\n"
        f"sys.argv = ['fedkit', *{line.split()!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    )


EACH_IN_TURN = """
import json, sys
from fedkit.cli import main

def imported():
    return sorted({name.partition(".")[0] for name in sys.modules})

found = {}
for line in LINES:
    sys.argv = ["fedkit", *line.split(), "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (line, end.code)
    found[line] = imported()
print("\\n" + json.dumps(found))
"""
"""What was imported once the help of each line was shown: by it, or by one before it."""


@pytest.fixture(scope="module")
def shown() -> dict[str, set[str]]:
    """What a process has imported that shows the help of all commands, those of a config last."""
    lines = sorted(commands(), key=of_a_config)
    ended = python_of(f"LINES = {lines!r}\n{EACH_IN_TURN}")
    found = json.loads(ended.splitlines()[-1])
    return {line: set(modules) for line, modules in found.items()}


def of_a_config(line: str) -> bool:
    return bool({"run", "init"} & set(line.split()))


@pytest.mark.parametrize("line", commands())
def test_help_imports_no_library_that_computes(line: str, shown: dict[str, set[str]]) -> None:
    assert shown[line] & NOT_FOR_HELP == set()
    if not of_a_config(line):
        assert shown[line] & {"numpy", "pydantic"} == set()


def test_all_commands_are_looked_at() -> None:
    assert {"show", "check", "inspect", "bench", "run", "fleet", "fleet init"} <= set(commands())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an own task, a run of it, and an artifact of each kind beside the run."""
    folder = tmp_path_factory.mktemp("imports")
    (folder / "own_task.py").write_text(OWN_TASK)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        fedkit.run("own_task:TASK", devices=2, rounds=1, epochs=1, min_size=2, folder="run")
    assert summary.show(folder / "run")["rounds"] == 1
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    calibration = np.random.default_rng(0).random((20, 1, 8, 8), np.float32)
    for name in ("m.tflite", "m.onnx", "m-c99", "m.graph"):
        edge.export_model(model, calibration, folder / name)
    return folder


def test_show_imports_no_library_that_computes(runs: Path) -> None:
    assert imported_by(command("show run"), runs) & {*HEAVY, "scipy"} == set()


@pytest.mark.parametrize("name", ["m.tflite", slow("m.onnx"), slow("m-c99"), "m.graph"])
def test_inspect_of_a_file_needs_no_torch(runs: Path, name: str) -> None:
    found = imported_by(command(f"inspect {name}"), runs)
    assert found & {*HEAVY, "onnxruntime"} == set()


@pytest.mark.parametrize("name", [slow("m.tflite"), slow("m.onnx"), "m-c99"])
def test_check_of_a_file_needs_what_runs_it_alone(runs: Path, name: str) -> None:
    found = imported_by(command(f"check {name} --task own_task:TASK"), runs)
    assert found & set(HEAVY) <= ({"onnx"} if name == "m.onnx" else set())


def test_list_of_benchmarks_imports_none_of_them(runs: Path) -> None:
    assert imported_by(command("bench device --list"), runs) & set(HEAVY) == set()
