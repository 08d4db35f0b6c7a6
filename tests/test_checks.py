"""Checks on the checks: configuration names what exists, tests can fail, what is written runs."""

from __future__ import annotations

import ast
import functools
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedkit.bench.registry import BENCHMARKS
from tests.written import fault_in_command

ROOT = Path(__file__).resolve().parents[1]
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


# pyproject.toml


def missing_paths(root: Path) -> list[str]:
    """List what `root`/pyproject.toml mentions and is not there."""
    config = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project, tool = config["project"], config["tool"]
    scripts = [target.partition(":")[0] for target in project["scripts"].values()]
    modules = [module.replace(".", "/") for module in scripts]
    packages = tool["setuptools"]["packages"]["find"]["include"]
    patterns = [
        project["readme"],
        *project["license-files"],
        *tool["pytest"]["ini_options"]["testpaths"],
        *tool["ruff"]["lint"]["per-file-ignores"],
        *(f"{name}/__init__.py" for name in packages if "*" not in name),
        *(
            f"{package}/{pattern}"
            for package, patterns in tool["setuptools"]["package-data"].items()
            for pattern in patterns
        ),
    ]
    missing = [pattern for pattern in patterns if not any(root.glob(pattern))]
    return missing + [
        module
        for module in modules
        if not (root / f"{module}.py").is_file() and not (root / module / "__init__.py").is_file()
    ]


def test_every_path_in_pyproject_exists() -> None:
    assert missing_paths(ROOT) == []


def test_every_source_and_header_of_the_kernels_rebuilds_them() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (kernels,) = config["tool"]["setuptools"]["ext-modules"]
    folders = {Path(source).parent for source in kernels["sources"]}
    there = {path for folder in folders for path in (ROOT / folder).iterdir() if path.is_file()}
    named = {ROOT / path for path in (*kernels["sources"], *kernels["depends"])}
    assert named == {path for path in there if path.suffix in (".c", ".h")}


def test_make_has_a_target_for_every_benchmark_that_it_leaves_out_of_the_results() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (left_out,) = re.findall(r"^LONG := (.*)$", makefile, re.MULTILINE)
    alone = re.findall(r"^\t\$\(BIN\)/fedkit bench (\w+) --json", makefile, re.MULTILINE)
    assert set(left_out.split()) == set(alone) < set(BENCHMARKS)
    assert "python -m fedkit.bench.registry" in makefile


def test_make_measures_committed_code_alone(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "All")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)

    def make() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", "committed"], cwd=tmp_path, capture_output=True, text=True)

    assert make().returncode == 0
    with (tmp_path / "Makefile").open("a") as file:
        file.write("# changed\n")
    assert make().returncode != 0
    assert "commit them first" in make().stdout
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    writing = re.findall(r"^(\w+):(.*)\n(?:\t.*\n)*?\t.*results/", makefile, re.MULTILINE)
    assert {name for name, _ in writing} == {"results", "accuracy", "exact", "jobs", "simulations"}
    assert all("committed" in needs for _, needs in writing)


def test_a_path_that_does_not_exist_is_found(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    missing = missing_paths(tmp_path)
    assert {"README.md", "LICENSE", "tests", "sim/py.typed", "fedkit/cli"} <= set(missing)


def test_every_package_is_shipped() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = config["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "examples"}
    assert folders == {name for name in shipped if "*" not in name}
    assert {f"{folder}.*" for folder in folders} < set(shipped)
    assert all((ROOT / folder / "py.typed").is_file() for folder in folders)


# Tests can fail


def called_name(node: ast.Call) -> str:
    return ast.unparse(node.func)


def asserts(node: ast.AST) -> bool:
    """Tell whether a statement is an assertion or hands over to one."""
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = called_name(node)
    return name in ("pytest.raises", "pytest.warns", "pytest.fail") or name.rpartition(".")[
        2
    ].startswith(("assert_", "check_"))


def without_assertion(tree: ast.AST) -> list[str]:
    """List the tests and the helpers that claim to check, but cannot fail."""
    return [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith(("test_", "assert_", "check_"))
        and not any(asserts(inner) for inner in ast.walk(node))
    ]


SKIPS = ("skip", "skipif", "xfail", "importorskip")


def skips_without_reason(tree: ast.AST) -> list[str]:
    """List skips and expected failures that do not say why, as they are written."""
    calls = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in SKIPS
        and ast.unparse(node).startswith("pytest.")
        and not (node in calls and has_reason(calls[node]))
    ]


def has_reason(call: ast.Call) -> bool:
    given = [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
    if called_name(call).rpartition(".")[2] in ("skip", "xfail"):
        given += call.args[:1]
    return any(not isinstance(value, ast.Constant) or bool(value.value) for value in given)


@functools.lru_cache(maxsize=1)
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_asserts_and_every_skip_has_a_reason(path: Path) -> None:
    assert without_assertion(parse(path)) == []
    assert skips_without_reason(parse(path)) == []


def imported_tests(tree: ast.AST) -> list[str]:
    """List modules of tests that a module imports from."""
    froms = (node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return [name for name in froms if name.rpartition(".")[2].startswith("test_")]


def test_what_tests_share_lies_in_modules_of_helpers() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in TEST_FILES}
    # To parse them all takes seconds, and few have such words outside of an import.
    may = {path: text for path, text in texts.items() if re.search(r"from\s+\S*test_", text)}
    found = {path: imported_tests(ast.parse(text)) for path, text in may.items()}
    assert {path: names for path, names in found.items() if names} == {}
    assert imported_tests(ast.parse("from tests.test_a import b")) == ["tests.test_a"]


def test_tests_and_checks_that_cannot_fail_are_found() -> None:
    bad = "def test_a(): print(1)\nclass T:\n    def test_b(self): return 1 == 2\n"
    worse = "def check_c(): pass\nasync def test_d(): helper()\n"
    assert without_assertion(ast.parse(bad + worse)) == ["test_a", "check_c", "test_d", "test_b"]


def test_each_kind_of_assertion_counts() -> None:
    kinds = ("assert x", "check_it(x)", "np.testing.assert_allclose(x, y)", "pytest.raises(E, f)")
    source = "\n".join(f"def test_{i}(): {kind}" for i, kind in enumerate(kinds))
    assert without_assertion(ast.parse(source)) == []


def test_skips_without_a_reason_are_found() -> None:
    silent = (
        "@pytest.mark.skip\ndef a(): pass\n",
        "@pytest.mark.xfail()\ndef a(): pass\n",
        "@pytest.mark.skipif(True)\ndef a(): pass\n",
        "pytest.skip('')\n",
        "pytest.importorskip('numpy')\n",
        "pytest.param(1, marks=pytest.mark.xfail)\n",
    )
    for source in silent:
        assert len(skips_without_reason(ast.parse(source))) == 1, source
    spoken = "@pytest.mark.skipif(True, reason='why')\ndef a(): pytest.skip('why')\n"
    assert skips_without_reason(ast.parse(spoken)) == []


# Commands that are written down


def test_the_main_job_of_the_makefile_exists() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(r"^RUN := (.*)$", text, re.MULTILINE)
    assert found is not None
    assert fault_in_command(found.group(1).split()) == ""


# The Makefile and .ci/run


def make_without_tools(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    make = shutil.which("make")
    assert make is not None
    command = [make, "--no-print-directory", *words]
    environment = {"PATH": str(folder)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("target", ["run", "test", "check", "setup", "constraints"])
def test_the_first_line_says_that_python_is_missing(tmp_path: Path, target: str) -> None:
    done = make_without_tools(tmp_path, target, f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    first = done.stdout.splitlines()[0]
    assert first.startswith("Python 3.11 or newer")
    assert all(system in first for system in ("Debian", "Fedora", "macOS"))


def test_the_first_line_says_that_a_compiler_is_missing(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "python3").chmod(0o755)
    done = make_without_tools(tmp_path, "run", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert done.stdout.startswith("A C compiler (cc, gcc or clang) was not found. Debian")


def test_make_does_not_touch_a_folder_that_is_no_environment(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for target in ("setup", "clean"):
        done = subprocess.run(
            ["make", target, f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode != 0
        assert "is not a virtual environment" in done.stdout
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_the_ci_script_is_strict_and_executable() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)


# Examples


def test_every_example_is_short_and_run_by_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in TEST_FILES)
    for example in EXAMPLES:
        assert len(example.read_text(encoding="utf-8").splitlines()) < 100, example.name
        assert example.name in tests, f"no test names {example.name}"


# Text of the repository


def git(*command: str) -> list[str]:
    """List the files that a command of git names; none where there is no repository."""
    ran = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.stdout.splitlines()


def test_nothing_large_and_nothing_made_is_committed() -> None:
    # data/keywords, 2.3 MB that a test had made, came in with an `add` of everything.
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard") == []
    sizes = {
        name: (ROOT / name).stat().st_size for name in git("ls-files") if (ROOT / name).exists()
    }
    assert [name for name, size in sizes.items() if size > 2**20] == []


SKIPPED_FOLDERS = {"__pycache__", "build", "runs", "data"}
MACHINE_PATH = re.compile(r"(?<![\w.~*-])/(work|root)/")


def text_files(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the text files of a checkout; hidden folders but .ci and environments are left out."""
    for path in sorted(root.iterdir()):
        if path.is_dir():
            hidden = path.name.startswith(".") and path.name != ".ci"
            built = path.name in SKIPPED_FOLDERS or path.suffix == ".egg-info"
            if not hidden and not built and not (path / "pyvenv.cfg").exists():
                yield from text_files(path)
        else:
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def with_machine_path(root: Path) -> list[str]:
    return [str(path) for path, text in text_files(root) if MACHINE_PATH.search(text)]


def test_no_file_names_a_path_of_one_machine() -> None:
    assert with_machine_path(ROOT) == []


def test_a_path_of_one_machine_is_found(tmp_path: Path) -> None:
    for name, folder in (("a", "work"), ("b", "root"), ("c", "home")):
        (tmp_path / f"{name}.md").write_text(f"see /{folder}/x and my/{folder}/y")
    (tmp_path / "weights.bin").write_bytes(b"\xff/work/")
    found = with_machine_path(tmp_path)
    assert [Path(name).name for name in found] == ["a.md", "b.md"]
