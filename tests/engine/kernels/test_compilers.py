"""The kernels under compilers: no warnings, and no access outside their memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedkit.engine.kernels import native
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.plan import save_plan
from fedkit.nn.zoo import build_model
from tests.engine.kernels.kernel_sets import KERNELS
from tests.sets import slow_but

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted(KERNELS.glob("*.c"))
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Werror"]
CLANG = [sys.executable, "-m", "ziglang", "cc", "-c", "-g0", "-fno-sanitize=all", "-target"]
COMPILERS = {
    "gcc": ["gcc", "-fsyntax-only"],
    "clang-x86-64": [*CLANG, "x86_64-linux-musl"],
    "clang-aarch64": [*CLANG, "aarch64-linux-musl"],
}


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


OWN = (("clang-x86-64", "avx512"), ("clang-aarch64", "neon"))
"""A compiler of another author, and what its processor runs."""
ALL = [(compiler, source.stem) for compiler in COMPILERS for source in SOURCES]


@pytest.mark.parametrize(
    ("compiler", "name"), slow_but([*OWN, *(each for each in ALL if each[0] == "gcc")], ALL)
)
def test_kernels_compile_without_warnings(compiler: str, name: str, tmp_path: Path) -> None:
    source = KERNELS / f"{name}.c"
    need_compiler(compiler)
    pedantic = ["-pedantic"] if source.stem == "plain" else []
    done = run(*COMPILERS[compiler], *WARNINGS, *pedantic, source, "-o", tmp_path / "out.o")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_the_optimiser_finds_nothing_to_warn_of(source: Path, tmp_path: Path) -> None:
    need_compiler("gcc")
    done = run("gcc", "-O3", "-c", *WARNINGS, source, "-o", tmp_path / "out.o")
    assert done.returncode == 0, done.stderr


def need_compiler(name: str) -> None:
    if name != "gcc":
        pytest.importorskip("ziglang", reason="not installed: ziglang; pip install -e .[dev]")
    elif shutil.which("gcc") is None:
        pytest.skip("there is no gcc; sudo apt install gcc")


# Sanitizers

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def sanitizer() -> str:
    """Return the runtime library to be loaded before all others."""
    need_compiler("gcc")
    path = run("gcc", "-print-file-name=libasan.so").stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip("this gcc has no sanitizers; sudo apt install libgcc-12-dev")
    return path


@pytest.fixture(scope="module")
def library(sanitizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Not optimised: the sanitizers' checks make the optimiser take minutes.
    folder = tmp_path_factory.mktemp("sanitized")
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    flags = ["-std=c99", "-O0", "-g1", "-ffp-contract=off", "-fPIC", *SANITIZE]
    running = [
        subprocess.Popen(["gcc", *flags, "-c", source, "-o", built])
        for source, built in zip(SOURCES, objects, strict=True)
    ]
    assert [process.wait() for process in running] == [0] * len(SOURCES)
    linked = folder / "kernels.so"
    done = run("gcc", "-shared", *SANITIZE, *objects, "-o", linked, "-lm", "-pthread")
    assert done.returncode == 0, done.stderr
    return linked


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return files of plans, so that they can be read where torch is not wanted."""
    folder = tmp_path_factory.mktemp("plans")
    shapes = {"resnet8": (3, 5, 7), "ds-cnn": (1, 11, 10)}
    for name, shape in shapes.items():
        save_plan(capture(build_model(name, shape, 3), shape), folder / name)
    return [folder / name for name in shapes]


ENGINES = ("sparse", "integer")


def drive(
    engine: str, sanitizer: str, library: Path, simd: str, overrun: int, plans: list[Path]
) -> subprocess.CompletedProcess[str]:
    return run(
        *(sys.executable, "-m", f"tests.engine.{engine}.sanitized"),
        library,
        simd,
        str(overrun),
        *plans,
        LD_PRELOAD=sanitizer,
        ASAN_OPTIONS="detect_leaks=0",
        UBSAN_OPTIONS="print_stacktrace=1",
        PYTHONMALLOC="malloc",
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("simd", native.available())
def test_kernels_stay_in_their_memory(
    sanitizer: str, library: Path, plans: list[Path], simd: str, engine: str
) -> None:
    done = drive(engine, sanitizer, library, simd, 0, plans)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("simd", native.available())
def test_leaving_the_scratch_is_caught(
    sanitizer: str, library: Path, simd: str, engine: str
) -> None:
    done = drive(engine, sanitizer, library, simd, 4, [])
    assert done.returncode != 0
    assert "ERROR: AddressSanitizer" in done.stderr
