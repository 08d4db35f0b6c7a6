"""Which kernels are taken, and what is said where there are none."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedkit.core.errors import EngineError
from fedkit.engine.kernels import native
from fedkit.engine.kernels.native import SIMD, available, load_kernels
from fedkit.engine.sparse.engine import SparseEngine
from tests.engine.plan.one_plan import PLAN


@pytest.fixture(autouse=True)
def _uncached(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("FEDKIT_SIMD", raising=False)
    load_kernels.cache_clear()
    yield
    load_kernels.cache_clear()


class Library:
    """A library that was compiled with some instruction sets; the processor lacks those of 0."""

    def __init__(self, **lanes: int) -> None:
        for simd, count in lanes.items():
            setattr(self, f"kernels_lanes_{simd}", lambda count=count: count)


def give(library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_library", lambda: library)


def test_every_machine_runs_the_plain_kernels() -> None:
    found = available()
    assert "plain" in found
    assert list(found) == [simd for simd in SIMD if simd in found]
    assert load_kernels().simd == found[0]
    assert load_kernels("plain").lanes == 8


@pytest.mark.parametrize(
    ("lanes", "expected"),
    [
        ({"plain": 8, "avx2": 8, "avx512": 16}, ("avx512", "avx2", "plain")),
        ({"plain": 8, "avx2": 8, "avx512": 0}, ("avx2", "plain")),
        ({"plain": 8, "neon": 8}, ("neon", "plain")),
        ({"plain": 8}, ("plain",)),
    ],
)
def test_the_fastest_that_the_processor_has_comes_first(
    lanes: dict[str, int], expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    give(Library(**lanes), monkeypatch)
    assert available() == expected


def test_the_variable_chooses_and_the_argument_overrides_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDKIT_SIMD", "plain")
    assert load_kernels().simd == "plain"
    assert load_kernels(available()[0]).simd == available()[0]


@pytest.mark.parametrize("name", ["sse9", "AVX2", "neon "])
def test_an_unknown_instruction_set_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDKIT_SIMD", name)
    message = f"instruction set '{name}' cannot be used here; this processor runs .*plain"
    with pytest.raises(EngineError, match=message):
        SparseEngine(PLAN)


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    give(None, monkeypatch)
    assert available() == ()
    with pytest.raises(EngineError, match=r"kernels .* are missing; install a C compiler .* gcc"):
        SparseEngine(PLAN)


def test_no_library_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_kernels.txt").write_text("no library")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    assert native._library.__wrapped__() is None


def test_a_damaged_library_is_an_error_that_can_be_acted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_kernels.abi3.so").write_bytes(b"\x7fELF and no more")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    with pytest.raises(EngineError, match=r"_kernels.abi3.so cannot be loaded: .*; install a C"):
        native._library.__wrapped__()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make other libraries with")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("int kernels_version(void) { return 99; }", "is version 99 of the kernels, .* drives"),
        ("int something(void) { return 1; }", "cannot be loaded: .*kernels_version"),
    ],
)
def test_a_library_of_another_version_is_refused(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "other.c").write_text(source)
    library = tmp_path / "_kernels.so"
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "other.c")]
    subprocess.run(command, check=True)
    with pytest.raises(EngineError, match=message):
        native._load(library)
