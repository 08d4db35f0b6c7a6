"""The compiled C model gives the interpreter's integers, all of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edge import artifact
from edge.define.interpret_int8 import evaluate_int8
from edge.export import export_c99, int8_graph, save_c99
from edge.targets.c99 import emitter as c99
from edge.targets.c99.calls import Goal, compile_graph
from edge.targets.c99.runner import CompiledRunner
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.nn.zoo import build_model
from tests.edge.models import MODELS, OWN, Flat, Images, images, pruned
from tests.edge.targets.c99.library import AARCH64, WARNINGS, emulate, need_emulator, need_gcc
from tests.edge.targets.compiled import PLAIN, QUICK, assert_same_integers
from tests.sets import slow, slow_but

GOALS: tuple[Goal, ...] = ("speed", "size")

Randomise = Callable[[nn.Module], nn.Module]


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    need_gcc()
    monkeypatch.setenv("CC", "gcc")


# Where the goal makes a difference: what is packed as weights.
PACKED = (*OWN, "convolution with stride 2", "depthwise convolution", "relu6 alone", "residual")
OPS = [*((name, "speed") for name in (*MODELS, *OWN)), *((name, "size") for name in PACKED)]


@pytest.mark.parametrize("flags", [PLAIN, slow((QUICK,))], ids=["plain", "native"])
@pytest.mark.parametrize(("name", "goal"), OPS)
def test_op(name: str, goal: Goal, flags: tuple[str, ...], tmp_path: Path) -> None:
    inputs = images(3, 8, 10)
    graph = int8_graph(Flat({**MODELS, **OWN}[name]()).eval(), inputs)
    assert_same_integers(graph, inputs, tmp_path / "model", goal, *flags)


ZOO = {
    "resnet8": (3, 16, 16),
    "ds-cnn": (1, 49, 10),
    "mobilenetv2-w0.25": (3, 8, 8),
    "resnet18-w16": (3, 8, 8),
    "resnet18-gn-w16": (3, 8, 8),
}


DENSITIES = ((1.0, "speed"), (0.1, "speed"), (0.01, "speed"), (0.1, "size"))
# Both goals, a dense model and a sparse one.
COVERED = [(name, *how) for name, how in zip(ZOO, DENSITIES, strict=False)][:2]


@pytest.mark.parametrize(
    ("name", "density", "goal"),
    slow_but(COVERED, [(name, *how) for name in ZOO for how in DENSITIES]),
)
def test_zoo(
    name: str,
    density: float,
    goal: Goal,
    tmp_path: Path,
    randomise: Randomise,
) -> None:
    model = pruned(randomise(build_model(name, ZOO[name], 10)), density)
    inputs = images(*ZOO[name], n=4)
    assert_same_integers(int8_graph(model, inputs), inputs, tmp_path / "model", goal)


@pytest.fixture(scope="module")
def resnet(randomise: Randomise) -> tuple[ir.Graph, Images]:
    """Return a graph whose layers are dense, sparse and empty, and its inputs."""
    torch.manual_seed(0)
    model = randomise(build_model("resnet8", (3, 12, 12), 10))
    for density, block in zip((1.0, 0.3, 0.0), list(model.children())[1:4], strict=True):
        pruned(block, density) if density else nn.init.zeros_(next(block.parameters()))
    inputs = images(3, 12, 12)
    return int8_graph(model, inputs), inputs


OPTIMISED = ("-O3", "-march=native")
COMPILED = [(flags, goal) for flags in (PLAIN, OPTIMISED) for goal in GOALS]


@pytest.mark.parametrize(("flags", "goal"), slow_but([(OPTIMISED, "size")], COMPILED))
def test_however_it_is_compiled(
    resnet: tuple[ir.Graph, Images], flags: tuple[str, ...], goal: Goal, tmp_path: Path
) -> None:
    assert_same_integers(*resnet, tmp_path / "model", goal, *flags)


@pytest.fixture(scope="module")
def folder(resnet: tuple[ir.Graph, Images], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("c99") / "model"
    return save_c99(*resnet, path, {"seed": 0}).path


def check_built(folder: Path, to: Path, *command: str) -> str:
    """Run a command in a copy of the folder; return what it prints."""
    shutil.copytree(folder, to)
    ended = subprocess.run(command, cwd=to, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize("flags", [PLAIN, slow((QUICK,))], ids=["plain", "native"])
@pytest.mark.parametrize("compiler", ["gcc -std=c99", slow("g++ -x c++ -std=c++11")])
def test_no_compiler_warns(
    folder: Path, tmp_path: Path, compiler: str, flags: tuple[str, ...]
) -> None:
    sources = sorted(path.name for path in folder.glob("*.c"))
    check_built(
        folder, tmp_path / "copy", *compiler.split(), "-fsyntax-only", *WARNINGS, *flags, *sources
    )


def test_the_folder_tests_itself(folder: Path, tmp_path: Path) -> None:
    printed = check_built(folder, tmp_path / "copy", "make", "test", "CFLAGS=-O1 -Werror")
    assert "0 of 40 outputs differ" in printed.splitlines()
    vectors = tmp_path / "copy" / "test_vector.h"
    text = vectors.read_text()
    start = text.index("test_outputs")
    vectors.write_text(text[:start] + text[start:].replace("{\n    ", "{\n    1+", 1))
    again = subprocess.run(
        ["make", "test", "CFLAGS=-O1"], cwd=vectors.parent, capture_output=True, text=True
    )
    assert again.returncode != 0
    assert "1 of 40 outputs differ" in again.stdout


def test_cmake_builds_it_too(folder: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("there is no cmake; sudo apt install cmake")
    script = "cmake -S . -B b -DCMAKE_BUILD_TYPE=Debug && cmake --build b && ctest --test-dir b"
    assert "100% tests passed" in check_built(folder, tmp_path / "copy", "sh", "-c", script)


@pytest.mark.slow
@pytest.mark.parametrize("simd", AARCH64)
@pytest.mark.parametrize("goal", GOALS)
def test_the_folder_tests_itself_on_aarch64(
    goal: Goal, simd: str, tmp_path: Path, randomise: Randomise
) -> None:
    need_emulator()
    model = pruned(randomise(build_model("resnet8", (3, 16, 16), 10)), 0.3)
    inputs = images(3, 16, 16)
    path = save_c99(int8_graph(model, inputs), inputs, tmp_path / "model", {}, goal).path
    assert emulated_main(path, simd) == 0
    vectors = path / "test_vector.h"
    text = vectors.read_text()
    start = text.index("test_outputs")
    vectors.write_text(text[:start] + text[start:].replace("{\n    ", "{\n    1+", 1))
    assert emulated_main(path, simd) == 1


def emulated_main(folder: Path, simd: str) -> int:
    """Return what main() of an exported folder returns on an emulated processor."""
    silent = folder / "silent.c"
    silent.write_text("int printf(const char *text, ...) { (void)text; return 0; }\n")
    flags = ("-O2", "-fno-builtin-printf", *WARNINGS)
    return int(emulate(sorted(folder.glob("*.c")), simd, *flags).call_int("main"))


@pytest.mark.slow
@pytest.mark.parametrize("goal", slow_but(("speed",), GOALS))
def test_no_step_leaves_the_arena(
    resnet: tuple[ir.Graph, Images], tmp_path: Path, goal: Goal
) -> None:
    path = save_c99(*resnet, tmp_path / "model", {}, goal).path
    flags = " ".join(QUICK if goal == "speed" else PLAIN)
    sanitized = f"CFLAGS={flags} -fsanitize=address,undefined -fno-sanitize-recover=all"
    assert "0 of 40" in check_built(path, tmp_path / "copy", "make", "test", sanitized)


def test_the_model_calls_nothing_but_its_kernels(folder: Path, tmp_path: Path) -> None:
    script = f"gcc -std=c99 -O1 -c model.c {' '.join(kernels_of(folder))} && nm -u *.o"
    printed = check_built(folder, tmp_path / "copy", "sh", "-c", script)
    unknown = {line.split()[-1] for line in printed.splitlines() if " U " in line}
    ours = ("model_ek_", "_GLOBAL_OFFSET_TABLE_")
    outside = {name for name in unknown if not name.startswith(ours)}
    assert outside <= {"memcpy", "memset", "__stack_chk_fail"}
    assert "model_ek_conv_dense" in unknown


def kernels_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("ek_*.c"))


def test_only_what_is_called_is_shipped(tmp_path: Path) -> None:
    graph = int8_graph(Flat(nn.MaxPool2d(2)).eval(), images(3, 8, 8))
    path = save_c99(graph, images(3, 8, 8), tmp_path / "model", {}).path
    assert kernels_of(path) == ["ek_layout.c", "ek_pool.c"]


def test_the_same_graph_gives_the_same_files(resnet: tuple[ir.Graph, Images]) -> None:
    graph, _ = resnet
    inputs = np.zeros((1, 12, 12, 3), np.int8)
    outputs = [evaluate_int8(graph, inputs)]
    assert c99.emit(graph, inputs, outputs) == c99.emit(graph, inputs, outputs)


def test_convolutions_take_sums_in(resnet: tuple[ir.Graph, Images]) -> None:
    graph, _ = resnet
    functions = [call.function for call in compile_graph(graph).calls]
    assert "add" in {op.kind for op in graph.ops}
    assert "ek_add" not in functions
    assert {"ek_conv_dense", "ek_conv_sparse"} <= set(functions)
    # Both convolutions of a block read the same phases.
    assert functions.count("ek_split") == 2


def test_a_small_model_is_small(resnet: tuple[ir.Graph, Images]) -> None:
    graph, _ = resnet
    none = np.zeros((0, 12, 12, 3), np.int8), [np.zeros((0, 10), np.int8)]
    fast, small = (c99.emit(graph, *none, goal) for goal in GOALS)
    assert small.arena_bytes < 9 * 1024 < fast.arena_bytes / 2
    convolutions = [{name for name in made.files if "conv" in name} for made in (fast, small)]
    assert convolutions == [
        {"ek_conv_dense.c", "ek_conv_sparse.c"},
        {"ek_conv_full.c", "ek_conv_stream.c"},
    ]


def test_a_layer_whose_products_cancel(tmp_path: Path) -> None:
    layer = nn.Linear(2, 4)
    nn.init.zeros_(layer.bias)
    layer.weight.data = torch.tensor([[1.0, -1.0], [0.9, -0.9], [-0.5, 0.5], [0.2, -0.2]])
    inputs = np.repeat(images(1, n=200), 2, axis=1) + 0.003 * images(2, n=200)
    with pytest.warns(UserWarning, match="not close to the float model"):
        graph = int8_graph(layer.eval(), inputs, accept_error=True)
    assert_same_integers(graph, inputs, tmp_path / "model", "speed")


# What is refused


def test_all_that_has_no_kernel_is_named_at_once() -> None:
    inputs = images(3, 4, 4)
    body = nn.Sequential(nn.Conv2d(3, 2, 1), nn.MaxPool2d(1), nn.Conv2d(2, 2, 1))
    graph = int8_graph(Flat(body).eval(), inputs)
    tiny = {
        op.output: replace(graph.tensors[op.output], quantization=ir.Quantization((1e-6,), (0,)))
        for op in graph.ops
        if op.kind == "conv2d"
    }
    changed = replace(graph, tensors={**graph.tensors, **tiny})
    with pytest.raises(ExportError) as refused:
        compile_graph(changed)
    message = str(refused.value)
    assert message.count("multiplies its sums by") == 2
    assert "module 'body.0'" in message and "module 'body.2'" in message


def test_a_float_graph_is_refused() -> None:
    tensors = {"x": ir.Tensor("x", (1, 2)), "y": ir.Tensor("y", (1, 2))}
    graph = ir.Graph(tensors, (ir.Op("relu", ("x",), ("y",)),), ("x",), ("y",))
    with pytest.raises(ExportError, match=r"not int8.*quantise it first"):
        compile_graph(graph)


# The artifact


def test_the_artifact_says_what_it_is(trained: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "digits"
    saved = export_c99(trained.model, trained.train[:200], path, {"task": "digits"})
    assert artifact.load(path) == saved
    assert (saved.target, saved.details["rounding"]) == ("c99", {"compiled": "half_up"})
    assert {p.name for p in path.iterdir()} == {*saved.files, "manifest.json"}
    assert os.listdir(path.parent) == ["digits"]
    logits = CompiledRunner(path, QUICK).predict(trained.test)
    assert (logits.argmax(axis=1) == trained.targets).mean() > 0.9
    with pytest.raises(ExportError, match=r"digits exists already.*choose another path"):
        export_c99(trained.model, trained.train[:2], path, {})


def test_a_changed_file_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "model.o").write_bytes(b"what make leaves")
    assert artifact.load(copy).sha256 == artifact.load(folder).sha256
    (copy / "model.c").write_text((copy / "model.c").read_text().replace("1", "2", 1))
    with pytest.raises(ExportError, match="is not the file its manifest describes"):
        CompiledRunner(copy)
    (copy / "model.c").unlink()
    with pytest.raises(ExportError, match=r"cannot read the artifact's file .*model\.c"):
        CompiledRunner(copy)


def test_the_runner_says_what_it_lacks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match="cannot compile"):
        CompiledRunner(folder, ["-fno-such-flag"])
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ExportError, match="there is no C compiler 'no-such-compiler'"):
        CompiledRunner(folder)


def test_inputs_that_do_not_fit_are_refused(folder: Path) -> None:
    runner = CompiledRunner(folder, PLAIN)
    wrong: list[NDArray[Any]] = [np.zeros((1, 3, 12, 11), np.int8), np.zeros((1, 3, 12, 12), int)]
    for inputs in wrong:
        with pytest.raises(ExportError, match="the model takes int8"):
            runner.predict_int8(inputs)
    timed = runner.latency(5)
    assert 0 < timed["median_us"] <= timed["p95_us"]
