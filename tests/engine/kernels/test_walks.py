"""Threads of a walk, compiled with steps of their own: bits, races, and systems without threads."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.engine.kernels.kernel_sets import KERNELS

DRIVER = Path(__file__).with_name("walks.c")
STRICT = ("-std=c99", "-g1", "-O1", "-Wall", "-Wextra", "-Werror")
THREADS = (1, 2, 3, 8, 16)
RACES = "-fsanitize=thread"

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="sudo apt install gcc")


def compiled(folder: Path, *flags: str, walk: Path = KERNELS / "walk.c") -> Path:
    program = folder / "walks"
    sources = (str(walk), str(DRIVER))
    command = ("gcc", *STRICT, *flags, f"-I{KERNELS}", *sources, "-o", str(program), "-pthread")
    done = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in done.stderr:
        pytest.skip("this gcc has no sanitizers; sudo apt install libgcc-12-dev")
    assert done.returncode == 0, done.stderr
    return program


def run(program: Path, threads: int, rounds: int = 20) -> subprocess.CompletedProcess[str]:
    command = (str(program), str(threads), str(rounds))
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def outputs(program: Path) -> list[tuple[int, str]]:
    """Return for each number of threads how many took part, and the bits."""
    found = []
    for threads in THREADS:
        done = run(program, threads)
        assert (done.returncode, done.stderr) == (0, "")
        walked, _, bits = done.stdout.partition("\n")
        found.append((int(walked), bits))
    return found


@pytest.fixture(scope="module")
def bits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what is computed where there are no threads."""
    program = compiled(tmp_path_factory.mktemp("one"), "-DFEDKIT_NO_THREADS")
    (found,) = set(outputs(program))
    assert found[0] == 1 and "nan" not in found[1] and len(set(found[1].split())) > 40
    return found[1]


@pytest.mark.parametrize("flags", [RACES, "-fsanitize=address,undefined"])
def test_threads_compute_the_bits_of_one(flags: str, bits: str, tmp_path: Path) -> None:
    assert outputs(compiled(tmp_path, flags)) == [(threads, bits) for threads in THREADS]


def test_where_threads_are_refused_the_others_take_all(bits: str, tmp_path: Path) -> None:
    """Every walk gets one thread, then none."""
    program = compiled(tmp_path, "-Dpthread_create=refused")
    found = outputs(program)
    assert {output for _, output in found} == {bits}
    assert {walked for walked, _ in found[1:]} <= {1, 2}


@pytest.mark.parametrize(
    "line",
    [
        "wait_for(crew, &crew->done, before);",
        "if (is_summed(step)) wait_for(crew, &crew->done, before + ticket);",
    ],
)
def test_a_walk_that_does_not_wait_is_caught(line: str, tmp_path: Path) -> None:
    text = (KERNELS / "walk.c").read_text(encoding="utf-8")
    assert text.count(line) == 1
    hasty = tmp_path / "walk.c"
    hasty.write_text(text.replace(line, ";"), encoding="utf-8")
    done = run(compiled(tmp_path, RACES, walk=hasty), 3)
    assert done.returncode != 0 and "data race" in done.stderr
