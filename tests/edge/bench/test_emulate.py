"""Emulated processors: what they compute, and how their instructions are counted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge.artifact import Artifact
from edge.bench import build, emulate
from edge.bench.result import ReferenceVectors, Result
from edge.bench.targets import TARGETS, find_target
from edge.define.interpret_int8 import evaluate_int8
from edge.export import int8_graph, save_c99
from edge.save import save
from fedkit.core.errors import BenchError, ConfigError
from fedkit.graph import ir
from fedkit.nn.zoo import build_model
from fedkit.preprocess.audio import Audio
from fedkit.preprocess.log_mel import LogMel
from tests.edge import recurrent_models, text_models
from tests.edge.models import pruned
from tests.edge.targets.c99.library import need_emulator
from tests.sets import slow, slow_but

SHAPE = (3, 8, 8)
FRONT_END = LogMel(8000, 128, 64, 128, 8, 100.0, 4000.0)


@pytest.fixture(autouse=True)
def _tools() -> None:
    need_emulator()


@pytest.fixture(scope="module")
def graph() -> ir.Graph:
    rng = np.random.default_rng(0)
    model = pruned(build_model("resnet8", SHAPE, 10), 0.2).eval()
    return int8_graph(model, rng.standard_normal((20, *SHAPE)).astype(np.float32))


def examples(graph: ir.Graph, count: int = 2) -> ReferenceVectors:
    inputs = np.random.default_rng(1).integers(-128, 128, (count, *SHAPE[1:], 3)).astype(np.int8)
    return ReferenceVectors(inputs, evaluate_int8(graph, inputs, "half_up"))


def saved(graph: ir.Graph, goal: Any, folder: Path) -> Artifact:
    return save_c99(graph, np.zeros((1, *SHAPE), np.float32), folder / goal, {}, goal)


Built = tuple[Artifact, build.Image]


@pytest.fixture(scope="module")
def built(graph: ir.Graph, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """The model for a target, and what it is compiled to, once asked for."""

    @functools.cache
    def made(name: str) -> Built:
        model = saved(graph, TARGETS[name].goal, tmp_path_factory.mktemp("model"))
        return model, build.build(model, TARGETS[name], tmp_path_factory.mktemp("image"))

    return made


@pytest.fixture(scope="module")
def model(built: Callable[[str], Built]) -> Artifact:
    """The model for a Cortex-M4."""
    return built("cortex-m4")[0]


@pytest.fixture(scope="module")
def image(built: Callable[[str], Built]) -> build.Image:
    """That model, compiled and linked."""
    return built("cortex-m4")[1]


@pytest.fixture(scope="module")
def emulated(graph: ir.Graph, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """What a target gives, once asked for."""

    @functools.cache
    def result(name: str) -> Result:
        made = saved(graph, TARGETS[name].goal, tmp_path_factory.mktemp("emulated"))
        return emulate.emulate(made, TARGETS[name], examples(graph))

    return result


@pytest.mark.parametrize("name", slow_but(("cortex-m4",), TARGETS))
def test_a_target_gives_the_interpreters_integers_and_the_same_figures_again(
    name: str, graph: ir.Graph, emulated: Callable[[str], Result], tmp_path: Path
) -> None:
    target = TARGETS[name]
    model = saved(graph, target.goal, tmp_path)
    first = emulated(name)
    assert first == emulate.emulate(model, target, examples(graph))
    assert first.examples == 2
    layers = [layer.quantities["instructions"].value for layer in first.layers]
    assert min(layers) > 0
    assert 0 < first["instructions"] - sum(layers) < 200, "model_invoke itself"
    assert [layer.source for layer in first.layers][:2] == ["input", "0.0"]
    assert first["ram_bytes"] >= model.details["arena_bytes"] + 3 * 8 * 8 + 10
    assert 100 < first["stack_bytes"] < 4096
    weights = sum(
        int(np.count_nonzero(t.data)) for t in graph.tensors.values() if t.data is not None
    )
    assert first["flash_bytes"] > weights


@pytest.mark.parametrize("name", ["cortex-m4", slow("cortex-m0plus"), slow("cortex-a53")])
def test_blocks_count_as_single_instructions_do(
    name: str, graph: ir.Graph, built: Callable[[str], Built]
) -> None:
    machine, data = emulate.Machine(built(name)[1], TARGETS[name]), examples(graph, 1).inputs[0]
    by_block = machine.infer(data)
    counted = sum(by_block.calls) + by_block.own
    # Those behind an IT whose condition does not hold are not steps of the emulator; they take
    # their cycle on silicon, and blocks count them. Only Cortex-M4 has such.
    skipped = counted / 100 if name == "cortex-m4" else 0
    assert 0 <= counted - one_by_one(machine) <= skipped


def one_by_one(machine: emulate.Machine) -> int:
    """Count the slow way."""
    from unicorn import unicorn_const

    counted = [0]

    def count(core: Any, address: int, size: int, data: object) -> None:
        counted[0] += 1

    hook = machine._core.hook_add(unicorn_const.UC_HOOK_CODE, count)
    machine._start()
    machine._core.hook_del(hook)
    return counted[0]


def test_a_wrong_integer_is_named_and_leaves_no_figure(
    graph: ir.Graph, model: Artifact, image: build.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulate, "build", lambda *_: image)
    right = examples(graph)
    wrong = right.expected.copy()
    wrong[1, 3] ^= 1
    target = TARGETS["cortex-m4"]
    with pytest.raises(BenchError, match=r"cortex-m4 gives -?\d+ for output \(3,\) of example 1"):
        emulate.emulate(model, target, replace(right, expected=wrong))


def test_a_fault_in_the_code_is_noticed(
    graph: ir.Graph, model: Artifact, image: build.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte of the program is another, as on a board whose flash went bad."""
    at, content = max(image.segments.items(), key=lambda each: len(each[1]))
    spoilt = {at: bytes([*content[:-40], content[-40] ^ 0x40, *content[-39:]])}
    monkeypatch.setattr(
        emulate, "build", lambda *_: replace(image, segments={**image.segments, **spoilt})
    )
    with pytest.raises(BenchError, match=r"no figure is given|crashed"):
        emulate.emulate(model, TARGETS["cortex-m4"], examples(graph))


def test_a_program_that_runs_away_is_stopped(
    graph: ir.Graph, model: Artifact, image: build.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = min(image.segments)
    monkeypatch.setattr(emulate, "build", lambda *_: replace(image, segments={code: b"\xff" * 64}))
    with pytest.raises(BenchError, match="cortex-m4 crashed at 0x"):
        emulate.emulate(model, TARGETS["cortex-m4"], examples(graph))


def test_what_cannot_be_emulated_is_refused(
    graph: ir.Graph, model: Artifact, image: build.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="unknown target 'cortex-m85'; allowed: cortex-m0plus"):
        find_target("cortex-m85")
    target = TARGETS["cortex-m4"]
    with pytest.raises(BenchError, match=r"zig cannot compile .*no-such-flag"):
        emulate.emulate(model, target, examples(graph), ["--no-such-flag"])
    monkeypatch.setattr(emulate, "build", lambda *_: image)
    short = ReferenceVectors(np.zeros((1, 5), np.int8), np.zeros((1, 10), np.int8))
    with pytest.raises(BenchError, match="an example has 5 bytes, and the model takes 192"):
        emulate.emulate(model, target, short)
    old = replace(model, details={"arena_bytes": 1})
    with pytest.raises(BenchError, match="export it again"):
        emulate.emulate(old, target, examples(graph))


def test_a_missing_package_is_named_with_what_installs_it(
    image: build.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "unicorn", None)
    with pytest.raises(BenchError, match=r"unicorn is not installed.*fedkit\[bench\]"):
        emulate.Machine(image, TARGETS["cortex-m4"])


@pytest.fixture
def assemble(tmp_path: Path) -> Callable[[str], bytes]:
    """Return the code of Thumb instructions."""

    def made(text: str) -> bytes:
        source = tmp_path / "code.s"
        source.write_text(f".syntax unified\n.thumb\nmodel_invoke:\n{text}\n")
        build.compile_c(
            "-target", "thumb-freestanding-eabi", "-mcpu=cortex_m4", "-c", str(source),
            "-o", str(tmp_path / "code.o"),
        )  # fmt: skip
        from elftools.elf.elffile import ELFFile

        with (tmp_path / "code.o").open("rb") as file:
            section: Any = ELFFile(file).get_section_by_name(".text")
            return bytes(section.data())

    return made


def test_thumb_instructions_of_both_sizes_are_told_apart(assemble: Callable[[str], bytes]) -> None:
    lines = [
        "movs r0, #1",
        "smlabb r0, r1, r2, r3",
        "ldrd r0, r1, [r2], #8",
        "it eq",
        "moveq r0, r1",
    ]
    lines += ["bl .", "ldr.w r0, [r1, r2, lsl #2]", "b .", "uxtb16 r3, r4", "bx lr"]
    code = assemble("\n".join(lines))
    assert 2 * len(lines) < len(code) < 4 * len(lines)
    assert emulate.thumb_length(code) == len(lines)


@pytest.mark.slow
def test_a_result_is_json_and_a_table(emulated: Callable[[str], Result]) -> None:
    result = emulated("cortex-a53")
    told = result.to_json()
    assert told["quantities"]["instructions"]["unit"] == "instructions"
    assert told["environment"]["flags"] == "-mcpu=cortex_a53 -O3"
    lines = result.table()
    assert lines[0] == ("total", "instructions", f"{result['instructions']:,}", "instructions")
    assert len(lines) == 4 + len(result.layers)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cortex-m4", "cortex-a53"])
def test_a_frame_of_sound_is_counted_and_compared(name: str, tmp_path: Path) -> None:
    audio = Audio(FRONT_END, 6)
    sound = np.random.default_rng(0).integers(-9000, 9000, FRONT_END.window).astype(np.int16)
    inputs = np.random.default_rng(0).random((9, *audio.shape), np.float32)
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 24, 3)).eval()
    made = int8_graph(layers, inputs)
    model = save("c99", made, inputs, tmp_path / "model", {}, audio)
    expected = model.inputs[0].quantize(audio.inputs(FRONT_END.levels(sound)[None])).ravel()
    found = emulate.emulate_frame(model, TARGETS[name], sound, expected)
    butterflies = 64 * 7
    assert 8 * butterflies < found < 100 * butterflies
    with pytest.raises(BenchError, match="differ"):
        emulate.emulate_frame(model, TARGETS[name], sound, expected + np.int8(1))


@pytest.mark.slow
def test_a_model_of_tokens(tmp_path: Path) -> None:
    graph = int8_graph(text_models.made("a bag"), text_models.examples(16))
    tokens = text_models.examples(2).astype(np.int32)
    expected = ReferenceVectors(tokens, evaluate_int8(graph, tokens, "half_up"))
    model = save_c99(graph, text_models.examples(1), tmp_path / "c", {}, "size")
    assert emulate.emulate(model, TARGETS["cortex-m4"], expected)["instructions"] > 0


@pytest.mark.slow
def test_calls_in_a_loop_are_counted_each_by_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = np.random.default_rng(0).standard_normal(
        (16, 9, recurrent_models.CHANNELS), np.float32
    )
    graph = int8_graph(recurrent_models.Recurrent(nn.LSTM, batch_first=True).eval(), inputs)
    model = save_c99(graph, inputs, tmp_path / "c", {}, "size")
    assert "for (int i = 0; i < " in (model.path / "model.c").read_text().partition("_invoke(")[2]
    codes = np.zeros((1, *graph.tensors[graph.inputs[0]].shape[1:]), np.int8)
    expected = ReferenceVectors(codes, evaluate_int8(graph, codes, "half_up"))
    found = emulate.emulate(model, TARGETS["cortex-m4"], expected)
    assert len(found.layers) == len(model.details["calls"]) > 9 * 10
