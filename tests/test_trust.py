"""What a folder makes us import is said first, and refused where it is another account's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fedkit.cli.trust import check_modules, check_run
from fedkit.core.errors import CheckpointError, ConfigError
from tests.fleet.command import command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder that names a module which leaves a trace when it is imported."""
    (tmp_path / "evil_task.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text('task = "evil_task:TASK"\nmethod = "fedtiny"\n')
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_module_is_named_with_its_place_and_not_imported(run: Path) -> None:
    said: list[str] = []
    check_run(run, False, said.append)
    (line,) = said
    assert "evil_task:TASK" in line and str(run.parent / "evil_task.py") in line
    assert "evil_task" not in sys.modules and not (run.parent / "ran").exists()


def test_it_is_said_before_it_happens(run: Path) -> None:
    code, _, said = command("export", run)
    sys.modules.pop("evil_task", None)
    assert code == 2 and "this imports" in said


@pytest.mark.parametrize("order", ["export"])
def test_anothers_folder_imports_nothing_until_it_is_trusted(
    run: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    code, _, said = command(order, run)
    assert code == 2 and "give --trust" in said and "evil_task.py" in said
    assert not (run.parent / "ran").exists() and "evil_task" not in sys.modules
    code, _, said = command(order, run, "--trust")
    assert "give --trust" not in said
    sys.modules.pop("evil_task", None)


def test_names_of_ours_need_no_trust(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    said: list[str] = []
    check_modules({"task": "digits", "method": "fedtiny"}, run, False, said.append)
    check_modules({"task": 3, "method": None}, run, False, said.append)
    assert said == []
    with pytest.raises(ConfigError, match="a module of Python itself"):
        check_modules({"method": "sys:exit"}, run, False, said.append)
    with pytest.raises(CheckpointError, match="not a run folder"):
        check_run(run.parent, False, said.append)
