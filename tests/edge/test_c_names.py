"""C models of several names are one program, and what a name may be."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge.artifact import Artifact
from edge.bench import build
from edge.define.interpret_int8 import Int8Array, evaluate_int8
from edge.export import export_c99, int8_graph, save_c99
from edge.targets.c99.calls import Goal
from edge.targets.c99.runner import CompiledRunner
from edge.targets.c_names import NAME, check_name, generic_names, name_for
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from tests.edge.models import images
from tests.edge.targets.c99.library import need_gcc

STRICT = ("-Wall", "-Wextra", "-Werror")
INPUTS = images(1, 6, 6)
CALLS = """\
#include "first/model.h"
#include "second/model.h"
#include "first/model.h"
#include <stdio.h>

static uint8_t one[FIRST_ARENA_BYTES + FIRST_ARENA_ALIGNMENT];
static uint8_t two[SECOND_ARENA_BYTES + SECOND_ARENA_ALIGNMENT];

int main(void) {
    static int8_t in[FIRST_INPUT_BYTES], first[FIRST_OUTPUT_BYTES], second[SECOND_OUTPUT_BYTES];
    uint8_t *one_at = one + FIRST_ARENA_ALIGNMENT - (uintptr_t)one % FIRST_ARENA_ALIGNMENT;
    uint8_t *two_at = two + SECOND_ARENA_ALIGNMENT - (uintptr_t)two % SECOND_ARENA_ALIGNMENT;
    while (fread(in, 1, FIRST_INPUT_BYTES, stdin) == FIRST_INPUT_BYTES) {
        if (first_invoke(in, first, one_at) || second_invoke(in, second, two_at)) return 1;
        for (int i = 0; i < FIRST_OUTPUT_BYTES; i++) printf("%d ", first[i]);
        for (int i = 0; i < SECOND_OUTPUT_BYTES; i++) printf("%d ", second[i]);
    }
    return 0;
}
"""


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    need_gcc()
    monkeypatch.setenv("CC", "gcc")


def small(seed: int, classes: int) -> ir.Graph:
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, classes)
    return int8_graph(nn.Sequential(*layers).eval(), INPUTS)


def made(folder: Path, name: str, seed: int, classes: int, goal: Goal) -> tuple[Int8Array, Path]:
    """Save a model and build its library; return what it gives, int8 [n, classes]."""
    graph = small(seed, classes)
    saved = save_c99(graph, INPUTS, folder / name, {}, goal, name=name)
    run("make", "-s", "libmodel.a", "CC=gcc", "CFLAGS=-O1 -Werror", cwd=saved.path)
    integers = saved.inputs[0].quantize(ir.to_graph_layout(INPUTS))
    return evaluate_int8(graph, integers, "half_up"), saved.path


def run(*command: str, cwd: Path | None = None, given: bytes = b"") -> str:
    ended = subprocess.run(command, cwd=cwd, input=given, capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode()


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Int8Array, Path]]:
    """What each of two models gives, and their folders, which lie in one."""
    need_gcc()
    folder = tmp_path_factory.mktemp("models")
    return [made(folder, "first", 0, 2, "speed"), made(folder, "second", 1, 3, "size")]


@pytest.mark.parametrize("what", ["archives", "objects", "archives in C++"])
def test_two_models_in_one_program_give_their_own_outputs(
    what: str, two_models: list[tuple[Int8Array, Path]], tmp_path: Path
) -> None:
    (first, one), (second, two) = two_models
    compiler = ["gcc", "-std=c99"]
    source = tmp_path / "calls.c"
    if what == "archives in C++":
        if shutil.which("g++") is None:
            pytest.skip("g++ is not installed")
        compiler, source = ["g++", "-std=c++11"], tmp_path / "calls.cpp"
    source.write_text(CALLS)
    linked = [str(path / "libmodel.a") for path in (one, two)]
    if what == "objects":
        linked = [str(made) for path in (one, two) for made in sorted(path.glob("*.o"))]
    program = str(tmp_path / "program")
    run(*compiler, *STRICT, f"-I{one.parent}", str(source), *linked, "-o", program)
    scale, zero = small(0, 2).tensors["input"].scale, small(0, 2).tensors["input"].zero_point
    integers = np.clip(np.rint(ir.to_graph_layout(INPUTS) / np.float32(scale)) + zero, -128, 127)
    told = run(program, given=integers.astype(np.int8).tobytes())
    found = np.array(told.split(), int).reshape(len(INPUTS), 5)
    assert np.array_equal(found, np.concatenate([first, second], 1))


def test_every_symbol_begins_with_the_name(tmp_path: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    _, folder = made(tmp_path, "keyword_spotter", 0, 2, "speed")
    told = run("nm", "-g", "--defined-only", str(folder / "libmodel.a"))
    symbols = [line.split()[-1] for line in told.splitlines() if len(line.split()) == 3]
    assert "keyword_spotter_invoke" in symbols and len(symbols) > 5
    assert [each for each in symbols if not each.startswith("keyword_spotter_")] == []


def test_the_header_defines_nothing_but_under_the_name(tmp_path: Path) -> None:
    saved = save_c99(small(0, 2), INPUTS, tmp_path / "folder", {}, name="net2")
    header = (saved.path / "model.h").read_text()
    defined = [line.split()[1] for line in header.splitlines() if line.startswith("#define")]
    assert len(defined) == 9
    assert all(name.startswith("NET2_") for name in defined)
    assert "MODEL" not in header.replace("NET2_", "") and "model_invoke" not in header


@pytest.mark.parametrize("name", ["model", "first"])
def test_a_folder_tests_itself_and_runs_here(name: str, tmp_path: Path) -> None:
    saved = save_c99(small(0, 2), INPUTS, tmp_path / "folder", {}, "size", name=name)
    assert saved.details["name"] == name
    assert "0 of 8 outputs differ" in run("make", "-s", "test", "CC=gcc", cwd=saved.path)
    assert CompiledRunner(saved.path, ("-O0",)).predict(INPUTS).shape == (len(INPUTS), 2)


def test_what_is_written_for_any_model_takes_one_of_another_name(tmp_path: Path) -> None:
    for name in (NAME, "first"):
        saved = save_c99(small(0, 2), INPUTS, tmp_path / name, {}, "size", name=name)
        object_file = str(tmp_path / "firmware.o")
        source = str(Path(build.__file__).with_name("firmware.c"))
        flags = [*generic_names(name), f"-I{saved.path}", *STRICT]
        run("gcc", "-std=c99", *flags, "-c", source, "-o", object_file)
        assert not generic_names(NAME)


@pytest.mark.parametrize(
    "name",
    [
        *("", "1st", "a-b", "a b", "a\nb", "a;b", "a\n", "_a", "a__b", "ä", "x" * 49),
        *("int", "class", "While", "ek", "test"),
    ],
)
def test_names_that_c_cannot_have_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="a C model cannot be called"):
        check_name(name)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).eval()
    with pytest.raises(ExportError, match="give a name of letters"):
        export_c99(model, INPUTS, tmp_path / "model", {}, name=name)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["First", "FIRST", "firsT"])
def test_names_that_would_share_macros_with_another_are_refused(name: str, tmp_path: Path) -> None:
    """A program that includes `first` too would see one arena size for both."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).eval()
    with pytest.raises(ExportError, match=f"cannot be called '{name}'.*call it first"):
        export_c99(model, INPUTS, tmp_path / "model", {}, name=name)
    with pytest.raises(ExportError, match="call it first"):
        save_c99(small(0, 2), INPUTS, tmp_path / "model", {}, name=name)
    assert not any(tmp_path.iterdir())
    check_name(name)  # what was exported so still runs


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        *(("first", "first"), ("model-int8-c99", "model_int8_c99"), ("a b.c", "a_b_c")),
        *(("3d", "model"), ("int", "model"), ("größe", "gr_e"), ("日本", "model")),
        *(("x" * 60, "model"), ("-x-", "x"), ("a__b", "a_b"), ("MyNet", "mynet")),
        ("\u212a9", "model"),
    ],
)
def test_a_model_is_called_as_its_folder(folder: str, name: str) -> None:
    assert name_for(Path("some") / folder) == name
    check_name(name)


def test_a_name_is_taken_from_the_folder(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).eval()
    saved: Artifact = export_c99(model, INPUTS, tmp_path / "second-one", {}, "size")
    assert "int second_one_invoke(" in (saved.path / "model.h").read_text()
