"""Every C kernel gives its twin's integers, whatever the compiler and the instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.edge.kernels import cases
from tests.edge.kernels.library import (
    C99,
    SOURCES,
    WARNINGS,
    Kernels,
    build,
    in_one,
    load,
    need_avx2,
    need_gcc,
)

ROOT = Path(__file__).resolve().parents[3]
VARIANTS = ("avx2-O0", "avx2-O3", "vnni-O1", "plain-O0", "plain-O3", "neon-O2", "dotprod-O2")
SANITIZE = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

seeds = st.integers(0, 2**32 - 1)
quick = settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="session", params=VARIANTS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return load(request.param, tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("kind", cases.CONVS)
@quick
@given(seed=seeds)
def test_a_random_convolution_equals_its_twin(kernels: Kernels, kind: str, seed: int) -> None:
    cases.check_random_conv(kernels, np.random.default_rng(seed), kind)


@pytest.mark.parametrize("kind", cases.CONVS)
@pytest.mark.parametrize("layer", cases.LAYERS, ids=str)
def test_a_usual_convolution_equals_its_twin(
    kernels: Kernels, layer: cases.Layer, kind: str
) -> None:
    if kind == "dense":
        layer = cases.ungrouped(layer)
    for seed in range(3):
        cases.check_conv(kernels, np.random.default_rng(seed), layer, kind)


@pytest.mark.parametrize("check_kernel", cases.CHECKS.values(), ids=cases.CHECKS)
@quick
@given(seed=seeds)
def test_another_kernel_equals_its_twin(
    kernels: Kernels, check_kernel: cases.Check, seed: int
) -> None:
    check_kernel(kernels, np.random.default_rng(seed))


# Compilers


@pytest.mark.parametrize("simd", ["-mavx2", "-DEK_PLAIN"])
@pytest.mark.parametrize("language", ["gcc -std=c99 -pedantic", "g++ -std=c++11 -x c++"])
def test_the_sources_are_clean_c_and_cpp(simd: str, language: str, tmp_path: Path) -> None:
    need_gcc()
    command = [*language.split(), *WARNINGS, simd, "-fsyntax-only", str(in_one(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "target",
    ["thumb-freestanding-eabi -mcpu=cortex_m4 -ffreestanding", "aarch64-linux-musl"],
    ids=["cortex-m4", "aarch64"],
)
def test_the_sources_compile_for_other_processors(target: str, tmp_path: Path) -> None:
    pytest.importorskip("ziglang", reason="not installed: ziglang; pip install -e .[dev]")
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", *target.split(), "-std=c99"]
    files = [str(in_one(tmp_path)), "-o", str(tmp_path / "out.o")]
    command = [*compiler, "-Os", "-pedantic", *WARNINGS, "-c", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_each_source_stands_alone() -> None:
    need_gcc()
    command = ["gcc", "-std=c99", *WARNINGS, "-DEK_PLAIN", "-fsyntax-only", *map(str, SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_of_a_c_library_but_memcpy_and_memset_is_needed(tmp_path: Path) -> None:
    need_gcc()
    built = tmp_path / "out.o"
    command = ["gcc", "-std=c99", "-O1", "-mavx2", "-c", str(in_one(tmp_path)), "-o", str(built)]
    subprocess.run(command, check=True)
    names = subprocess.run(["nm", "-u", str(built)], capture_output=True, text=True, check=True)
    needed = {line.split()[-1] for line in names.stdout.splitlines()}
    assert needed <= {"memcpy", "memset", "_GLOBAL_OFFSET_TABLE_"}


def test_no_kernel_has_state() -> None:
    code = "".join(path.read_text() for path in C99.iterdir())
    assert "malloc" not in code
    kept = [line.strip() for line in code.splitlines() if line.strip().startswith("static ")]
    variables = [line for line in kept if "(" not in line]
    assert all(line.startswith("static const ") for line in variables), variables


# Sanitizers


@pytest.fixture(scope="module", params=["-mavx2", "-DEK_PLAIN"])
def sanitized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_gcc()
    if request.param == "-mavx2":
        need_avx2()
    return build(tmp_path_factory.mktemp("sanitized"), request.param, *SANITIZE)


def drive(library: Path, short: int) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip("this gcc has no sanitizers; sudo apt install libgcc-12-dev")
    return subprocess.run(
        [sys.executable, "-m", "tests.edge.kernels.sanitized", str(library), str(short)],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": found, "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_kernels_stay_in_their_memory(sanitized: Path) -> None:
    done = drive(sanitized, 0)
    assert done.returncode == 0, done.stderr[-3000:]


def test_leaving_the_memory_is_found(sanitized: Path) -> None:
    done = drive(sanitized, 80)
    assert "AddressSanitizer" in done.stderr
