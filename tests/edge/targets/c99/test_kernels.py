"""Every C kernel gives its reference's integers, whatever the compiler and the instruction set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.edge.targets.c99 import cases
from tests.edge.targets.c99.library import (
    C99,
    SOURCES,
    WARNINGS,
    X86,
    Emulated,
    InferenceKernels,
    build,
    emulate,
    in_one,
    load,
    need_avx2,
    need_emulator,
    need_gcc,
)
from tests.sets import slow, slow_but

ROOT = Path(__file__).resolve().parents[4]
VARIANTS = (
    *("native-O2", "avx2-O0", "fma-O3", "vnni-O0", "avx512-O1"),
    *("plain-O0", "plain-O3", "dotprod-O2", "dsp-O0", "neon-O2"),
    *("vnni-O1", "dsp-O2"),
)
# Every set of instructions but one of two that are emulated; what is optimised takes longest.
QUICK_VARIANTS = (
    "native-O2",
    "avx2-O0",
    "vnni-O0",
    "avx512-O1",
    "plain-O0",
    "dotprod-O2",
    "dsp-O0",
)
PLAIN = "-DEK_PLAIN"
AARCH64 = ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++")
SANITIZE = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

seeds = st.integers(0, 2**32 - 1)
quick = settings(
    deadline=None, max_examples=1, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
thorough = settings(quick, max_examples=100)


@pytest.fixture(scope="module", params=slow_but(QUICK_VARIANTS, VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def kernels(variant: str, tmp_path_factory: pytest.TempPathFactory) -> InferenceKernels:
    return load(variant, tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("kind", cases.CONVS)
@quick
@given(seed=seeds)
def test_a_random_convolution_equals_its_reference(
    kernels: InferenceKernels, kind: str, seed: int
) -> None:
    cases.check_random_conv(kernels, np.random.default_rng(seed), kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", cases.CONVS)
@thorough
@given(seed=seeds)
def test_many_random_convolutions_equal_their_references(
    kernels: InferenceKernels, kind: str, seed: int
) -> None:
    cases.check_random_conv(kernels, np.random.default_rng(seed), kind)


def check_usual(kernels: InferenceKernels, layer: cases.ConvShape, kind: str, seed: int) -> None:
    if kind in ("dense", "full"):
        layer = cases.ungrouped(layer)
    cases.check_conv(kernels, np.random.default_rng(seed), layer, kind)


@pytest.mark.parametrize("number", range(len(cases.LAYERS)))
def test_a_usual_convolution_equals_its_reference(
    kernels: InferenceKernels, variant: str, number: int
) -> None:
    """Every two of a layer, a kind and a set of kernels meet; the third varies."""
    kind = cases.CONVS[(number + VARIANTS.index(variant)) % len(cases.CONVS)]
    check_usual(kernels, cases.LAYERS[number], kind, seed=number)


@pytest.mark.slow
@pytest.mark.parametrize("kind", cases.CONVS)
@pytest.mark.parametrize("layer", cases.LAYERS, ids=str)
def test_every_usual_convolution_equals_its_reference(
    kernels: InferenceKernels, layer: cases.ConvShape, kind: str
) -> None:
    for seed in range(3):
        check_usual(kernels, layer, kind, seed)


@pytest.mark.parametrize("check_kernel", cases.CHECKS.values(), ids=cases.CHECKS)
@quick
@given(seed=seeds)
def test_another_kernel_equals_its_reference(
    kernels: InferenceKernels, check_kernel: cases.Check, seed: int
) -> None:
    check_kernel(kernels, np.random.default_rng(seed))


# Compilers


LANGUAGES = ("-std=c99 -pedantic", "-std=c++11 -x c++")
TARGETS = {
    "x86-64": "-target x86_64-linux-musl -mcpu=x86_64_v3",
    "vnni": "-target x86_64-linux-musl -mcpu=alderlake",
    "avx512-vnni": "-target x86_64-linux-musl -mcpu=icelake_server",
    "neon": "-target aarch64-linux-musl -mcpu=cortex_a72",
    "dotprod": "-target aarch64-linux-musl -mcpu=cortex_a76",
    "cortex-m0plus": "-target thumb-freestanding-eabi -mcpu=cortex_m0plus -ffreestanding",
    "cortex-m4": "-target thumb-freestanding-eabi -mcpu=cortex_m4 -ffreestanding",
}


def check_clean(compiler: Sequence[str], folder: Path, *flags: str) -> None:
    """Compile all kernels; a warning is an error."""
    files = [f"-I{C99}", str(in_one(folder)), "-o", str(folder / "out.o")]
    command = [*compiler, *WARNINGS, *flags, "-c", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("language", slow_but(LANGUAGES[:1], LANGUAGES))
@pytest.mark.parametrize(
    "simd",
    slow_but(
        ("-mavx2 -mavxvnni -mfma", PLAIN),
        (
            *("-mavx2", "-mavx2 -mavxvnni -mfma", "-mavx512vnni -mavx512vl -mfma"),
            *("-mavx512vnni -mavx512vl -mavx512bw -mfma", "-march=icelake-server", PLAIN),
        ),
    ),
)
def test_gcc_finds_the_sources_clean(simd: str, language: str, tmp_path: Path) -> None:
    need_gcc()
    for flags in (("-fsyntax-only",), ("-O3",)) if simd == "-mavx2" else (("-fsyntax-only",),):
        check_clean(("gcc", *language.split()), tmp_path, *simd.split(), *flags)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["-O0", "-O3"])
@pytest.mark.parametrize("simd", ["-march=armv8-a", "-march=armv8.2-a+dotprod", PLAIN])
@pytest.mark.parametrize("language", LANGUAGES)
def test_gcc_for_aarch64_finds_the_sources_clean(
    simd: str, language: str, level: str, tmp_path: Path
) -> None:
    if not all(map(shutil.which, AARCH64)):
        pytest.skip(f"there are not both {AARCH64}; sudo apt install g++-aarch64-linux-gnu")
    check_clean((AARCH64[0], *language.split()), tmp_path, simd, level)


def zig(target: str) -> list[str]:
    return [sys.executable, "-m", "ziglang", "cc", *TARGETS[target].split()]


@pytest.mark.parametrize(
    ("target", "level"), [("neon", "-O0"), *(slow((target, "-Os")) for target in TARGETS)]
)
def test_clang_finds_the_sources_clean(target: str, level: str, tmp_path: Path) -> None:
    pytest.importorskip("ziglang", reason="not installed: ziglang; pip install -e .[dev]")
    check_clean((*zig(target), *LANGUAGES[0].split()), tmp_path, level)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["-O0", "-O3"])
@pytest.mark.parametrize("simd", ["", PLAIN], ids=["vectors", "plain"])
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("target", TARGETS)
def test_clang_finds_them_clean_in_every_way(
    target: str, language: str, simd: str, level: str, tmp_path: Path
) -> None:
    pytest.importorskip("ziglang", reason="not installed: ziglang; pip install -e .[dev]")
    check_clean((*zig(target), *language.split()), tmp_path, *simd.split(), level)


@pytest.mark.slow
@pytest.mark.parametrize("simd", ["neon", "dotprod"])
def test_vectors_take_a_fraction_of_the_instructions(simd: str, tmp_path: Path) -> None:
    need_emulator()
    from tests.edge.targets.c99.count import instructions

    counts = []
    for name in (simd, "plain_aarch64"):
        (tmp_path / name).mkdir()
        emulated = emulate([in_one(tmp_path / name)], name, "-O3", f"-I{C99}")
        counts.append(
            [instructions(Emulated(emulated), "sparse", density) for density in (0.1, 0.05, 0.01)]
        )
    for vectors, plain in zip(*counts, strict=True):
        assert vectors < plain / 2


def test_each_source_stands_alone() -> None:
    need_gcc()
    command = ["gcc", "-std=c99", *WARNINGS, "-DEK_PLAIN", "-fsyntax-only", *map(str, SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("level", ["-O0", slow("-O1")])
def test_nothing_of_a_c_library_but_memcpy_and_memset_is_needed(level: str, tmp_path: Path) -> None:
    need_gcc()
    built = tmp_path / "out.o"
    command = [
        "gcc",
        "-std=c99",
        level,
        f"-I{C99}",
        "-mavx2",
        "-c",
        str(in_one(tmp_path)),
        "-o",
        str(built),
    ]
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


@pytest.fixture(
    scope="module",
    params=slow_but(("native",), ("native", "fma", "vnni", "avx512", "dsp", "plain")),
)
def sanitized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_gcc()
    if request.param not in ("dsp", "plain"):
        need_avx2()
    return build(tmp_path_factory.mktemp("sanitized"), *X86[request.param], *SANITIZE)


def drive(library: Path, short: int, rounds: int) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        pytest.skip("this gcc has no sanitizers; sudo apt install libgcc-12-dev")
    return subprocess.run(
        [
            *(sys.executable, "-m", "tests.edge.targets.c99.sanitized"),
            *(str(library), str(short), str(rounds)),
        ],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": found, "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("rounds", [8, slow(25)])
def test_kernels_stay_in_their_memory(sanitized: Path, rounds: int) -> None:
    done = drive(sanitized, 0, rounds)
    assert done.returncode == 0, done.stderr[-3000:]


def test_leaving_the_memory_is_found(sanitized: Path) -> None:
    done = drive(sanitized, 80, 8)
    assert "AddressSanitizer" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("simd", ["neon", "dotprod"])
def test_kernels_of_aarch64_leave_nothing_undefined(simd: str, tmp_path: Path) -> None:
    need_emulator()
    # What is undefined is an instruction that the emulator stops at.
    sanitize = ("-fsanitize=undefined", "-fsanitize-trap=undefined", "-fno-stack-protector")
    processor = emulate([in_one(tmp_path)], simd, *sanitize, "-O1", f"-I{C99}")
    kernels = InferenceKernels(Emulated(processor))
    for seed in range(10):
        for check in cases.CHECKS.values():
            check(kernels, np.random.default_rng(seed))
        for kind in cases.CONVS:
            cases.check_random_conv(kernels, np.random.default_rng(seed), kind)
