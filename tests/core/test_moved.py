"""Old import paths: those of 0.1 as it was before its modules moved, listed in old_paths.txt."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedkit.core.moved import EMPTIED, MODULES, NAMES
from tests.sets import slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LISTED = {
    path: names.split()
    for path, _, names in (
        line.partition(":") for line in (HERE / "old_paths.txt").read_text().splitlines()
    )
}


def python(code: str, *options: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True)


@pytest.fixture(scope="module")
def walked() -> dict[str, dict[str, Any]]:
    """What an interpreter finds that imports every old path, one after the other."""
    ended = python(
        (HERE / "walk_old_paths.py").read_text(), given=(HERE / "old_paths.txt").read_text()
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, dict[str, Any]] = json.loads(ended.stdout)
    return found


def test_the_tables_are_of_modules_that_there_were_and_that_there_are() -> None:
    files = {path.relative_to(ROOT) for path in ROOT.glob("*/**/*.py")}
    for old, new in MODULES.items():
        where = Path(*new.split("."))
        assert old in LISTED
        assert {where.with_suffix(".py"), where / "__init__.py"} & files, new
    assert set(EMPTIED) | set(NAMES) <= set(LISTED)


@pytest.mark.slow
def test_each_old_path_is_the_new_module_itself(walked: dict[str, dict[str, Any]]) -> None:
    assert set(walked) == set(LISTED)
    for old, found in walked.items():
        assert found["name"] == MODULES.get(old, old)
        assert found["own"], f"{old} is a copy"


@pytest.mark.slow
def test_each_old_path_has_the_names_it_had(walked: dict[str, dict[str, Any]]) -> None:
    moved = set(MODULES) | set(NAMES)
    assert {old: found["lacking"] for old, found in walked.items() if old in moved} == {
        old: [] for old in moved
    }


@pytest.mark.slow
def test_each_old_path_warns_once_and_names_the_new_one(
    walked: dict[str, dict[str, Any]],
) -> None:
    for old, found in walked.items():
        new = MODULES.get(old)
        expected = [f"{old} is now {new}; the old path goes with fedkit 0.2"] if new else []
        assert found["at_import"] == expected
        names = NAMES.get(old, {})
        assert sorted(found["of_names"]) == sorted(
            f"{old}.{name} is now {where}; the old path goes with fedkit 0.2"
            for name, where in names.items()
        )
        assert found["kinds"] == (["DeprecationWarning"] if expected or names else [])


@pytest.mark.slow
def test_no_old_path_takes_the_place_of_a_name(walked: dict[str, dict[str, Any]]) -> None:
    assert [old for old, found in walked.items() if found["took_a_place"]] == []


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("import fedkit.errors", "fedkit.errors is now fedkit.core.errors"),
        slow(("from fedkit.task import Task", "fedkit.task is now fedkit.tasks.task")),
        slow(("from edge import lower", "edge.lower is now fedkit.graph.from_torch")),
        slow(("import edge.kernels.pack", "edge.kernels.pack is now edge.targets.c99.pack")),
        slow(("from sim import cell", "sim.cell is now fedkit.bench.cell")),
        (
            "from edge.quantize import quantize",
            "edge.quantize.quantize is now edge.quantize.to_int8.quantize",
        ),
    ],
)
def test_the_warning_points_at_the_line_of_the_user(statement: str, said: str) -> None:
    ended = python(statement, "-W", "error")
    assert ended.returncode == 1
    assert f"DeprecationWarning: {said}" in ended.stderr
    shown = python(f"{statement}\n{statement}")  # Python shows those of the main module by itself.
    assert shown.stderr.count(f"<string>:1: DeprecationWarning: {said}") == 1
    assert "DeprecationWarning" not in shown.stderr.replace("<string>:1: Depr", "", 1)


def test_our_own_imports_warn_of_nothing() -> None:
    ended = python(
        "import edge.export, sim.simulation, fedkit.cli.job, fedkit.report", "-W", "always"
    )
    assert ended.returncode == 0 and "fedkit 0.2" not in ended.stderr


def test_an_old_path_is_as_good_as_the_new_one_to_patch_and_to_compare() -> None:
    ended = python(
        "import fedkit.rounds, fedkit.server.rounds\n"
        "from fedkit.errors import ConfigError as old\n"
        "from fedkit.core.errors import ConfigError as new\n"
        "fedkit.rounds.run_rounds = 5\n"
        "assert fedkit.server.rounds.run_rounds == 5 and old is new\n"
    )
    assert ended.returncode == 0, ended.stderr


def test_what_was_never_there_is_not_found() -> None:
    modules = ("fedkit.nothing", "edge.emit.nothing", "fedkit.baselines.nothing")
    statements = [*(f"import {name}" for name in modules), "from fedkit.report import nothing"]
    ended = python(
        f"for statement in {statements}:\n"
        "    try:\n        exec(statement)\n"
        "    except ImportError as error:\n        print(type(error).__name__, error)\n"
    )
    *missing, without_name = ended.stdout.splitlines()
    assert missing == [f"ModuleNotFoundError No module named '{name}'" for name in modules]
    assert without_name.startswith("ImportError cannot import name 'nothing'")


@pytest.mark.slow
def test_nothing_of_ours_uses_an_old_path() -> None:
    gone = set(MODULES) | set(EMPTIED)
    for folder in ("fedkit", "edge", "sim", "tests", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            used = set(imported(path)) & (gone | {f"{m}.{n}" for m in NAMES for n in NAMES[m]})
            assert not used, f"{path}: {used}"


def imported(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found
