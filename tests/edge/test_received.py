"""A folder that somebody else made: what runs of it, and what is said before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from edge import artifact
from edge.check import check
from edge.define.interpret_int8 import evaluate_int8
from edge.export import int8_graph, save_c99, save_fpga, save_graph, save_tflite
from edge.inspect import inspect
from edge.runners import open_runner
from edge.targets.c99.runner import CompiledRunner
from edge.targets.fpga import yosys
from fedkit.cli import export
from fedkit.cli.app import app
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from tests.edge import manifests
from tests.edge.models import images
from tests.edge.targets.c99.library import need_gcc

INPUTS = images(1, 8, 8)


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    need_gcc()
    monkeypatch.setenv("CC", "gcc")


@pytest.fixture(scope="module")
def graph() -> ir.Graph:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    return int8_graph(model.eval(), INPUTS)


@pytest.fixture(scope="module")
def made(graph: ir.Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    whole = save_graph(graph, folder / "model.graph", {})
    about = {"graph": whole.path.name, "graph_sha256": whole.sha256}
    save_c99(graph, INPUTS, folder / "c99", about, "size")
    save_fpga(graph, INPUTS, folder / "fpga", about)
    save_tflite(graph, INPUTS, folder / "model.tflite", about)
    return folder


@pytest.fixture
def received(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "received"))


def plant(folder: Path, mark: Path) -> None:
    """Make the model's own C write a file as soon as it is loaded."""
    source = folder / "model.c"
    code = f'fclose(fopen("{mark}", "w"));'
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void planted(void) { "
        f"{code} }}\n{source.read_text()}"
    )
    manifests.sign_folder(folder)


def expected(graph: ir.Graph) -> Any:
    first = graph.tensors[graph.inputs[0]]
    codes = np.rint(ir.to_graph_layout(INPUTS) / np.float32(first.scale)) + first.zero_point
    return evaluate_int8(graph, np.clip(codes, -128, 127).astype(np.int8), "half_up")


@pytest.mark.parametrize("name", ["c99", "fpga", "model.tflite", "model.graph"])
def test_the_interpreter_gives_the_integers_of_any_artifact(
    name: str, made: Path, graph: ir.Graph
) -> None:
    runner = open_runner(made / name, "interpreter")
    found = runner.predict_int8(runner.quantize(INPUTS))
    if name == "model.tflite":
        assert np.array_equal(found, open_runner(made / name).predict_int8(runner.quantize(INPUTS)))
    else:
        assert np.array_equal(found, expected(graph))
    assert runner.predict_int8(np.zeros((0, 1, 8, 8), np.int8)).shape == (0, 10)
    with pytest.raises(ExportError, match="the model takes int8"):
        runner.predict_int8(np.zeros((1, 1, 8, 7), np.int8))


def test_nothing_of_a_folder_runs_by_the_interpreter(
    received: Path, graph: ir.Graph, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    plant(received / "c99", mark)
    runner = open_runner(received / "c99", "interpreter")
    assert np.array_equal(runner.predict_int8(runner.quantize(INPUTS)), expected(graph))
    with pytest.raises(ExportError, match=r"model\.c is not what this version .* nothing was run"):
        check(received / "c99", INPUTS, "interpreter")
    assert not mark.exists()
    CompiledRunner(received / "c99", ("-O0",))
    assert mark.exists(), "what was planted would not have told"


@pytest.mark.parametrize("target", ["c99", pytest.param("fpga", marks=pytest.mark.slow)])
def test_check_by_the_interpreter_runs_what_is_made_here(target: str, made: Path) -> None:
    if target == "fpga" and yosys.obstacle("yosys"):
        pytest.skip("yosys is not installed: pip install 'fedkit[bench]'")
    report = check(made / target, INPUTS[:2], "interpreter")
    assert (report.mismatches, report.examples) == (0, 2)
    with pytest.raises(ExportError, match=r"which is what .* is compared with; give one of"):
        check(made / "model.tflite", INPUTS[:2], "interpreter")


def test_other_verilog_is_refused_by_the_interpreter(received: Path) -> None:
    engine = received / "fpga" / "engine.v"
    engine.write_text(engine.read_text().replace("LAST_LANE", "FINAL_LANE"))
    manifests.sign_folder(received / "fpga")
    with pytest.raises(ExportError, match=r"engine\.v is not what this version"):
        check(received / "fpga", INPUTS[:1], "interpreter")


def test_what_lies_beside_the_files_takes_no_part(received: Path) -> None:
    for name in ("stdint.h", "string.h", "immintrin.h"):
        (received / "c99" / name).write_text("#error somebody else's header\n")
    (received / "c99" / "zz.c").write_text("#error somebody else's source\n")
    assert check(received / "c99", INPUTS).mismatches == 0


def test_a_changed_folder_is_taken_by_who_says_so(received: Path) -> None:
    source = received / "c99" / "model.c"
    source.write_text(source.read_text() + "/* mine */\n")
    with pytest.raises(ExportError, match=r"is not the file its manifest .* --changed"):
        open_runner(received / "c99")
    assert open_runner(received / "c99", changed=True).predict(INPUTS).shape == (12, 10)
    assert check(received / "c99", INPUTS, changed=True).mismatches == 0


def test_it_is_said_before_it_happens(received: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(*_: Any, **__: Any) -> Any:
        raise ExportError("here it would have been run")

    monkeypatch.setattr(export, "open_runner", no_more)
    monkeypatch.setattr("edge.check.open_runner", no_more)
    for command in ("eval", "check"):
        for name, language in (("c99", "C"), ("fpga", "Verilog")):
            told = CliRunner().invoke(app, [command, str(received / name), "--task", "digits"])
            text = " ".join(told.output.split())
            said = f"compiling the {language} in {received / name} and running it here"
            assert said in text and "would have been run" in str(told.exception)
    told = CliRunner().invoke(app, ["eval", str(received / "model.tflite"), "--task", "digits"])
    assert "compiling" not in told.output


def test_eval_by_the_interpreter(received: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    plant(received / "c99", mark)
    command = ["eval", str(received / "c99"), "--task", "digits", "--runtime", "interpreter"]
    told = CliRunner().invoke(app, [*command, "--json"])
    assert told.exit_code == 0, told.output
    assert '"runtime": "interpreter"' in told.output and "compiling" not in told.output
    assert "latency" not in told.output and not mark.exists()
    assert CliRunner().invoke(app, command).exit_code == 0


# What a manifest may say


@pytest.mark.parametrize(
    "name", ["../outside.c", "/etc/hostname", "a/b.c", "", ".", "a\nb.c", 'a"b']
)
def test_a_file_that_is_a_path_is_refused(name: str, received: Path) -> None:
    path = artifact.manifest_path(received / "c99")
    fields = manifests.read(path)
    manifests.sign(path, {**fields, "files": [*fields["files"], name]})
    with pytest.raises(ExportError, match="is not a plain file name"):
        artifact.load(received / "c99")


@pytest.mark.parametrize("name", ["../m", "", "..", "/etc/hostname", "a\0b", "x" * 300, "\ud800"])
def test_a_graph_that_does_not_lie_beside_is_refused(name: str, received: Path) -> None:
    path = artifact.manifest_path(received / "c99")
    manifests.sign(path, {**manifests.read(path), "provenance": {"graph": name}})
    with pytest.raises(ExportError, match="names the graph"):
        check(received / "c99", INPUTS)


@pytest.mark.parametrize(
    "change",
    [
        *({"arena_bytes": 8}, {"arena_bytes": 10**12}, {"arena_bytes": "1"}, {"goal": 3}),
        *({"name": "other"}, {"name": "a;b"}, {"name": None}),
    ],
)
def test_details_that_are_not_true_are_errors(change: dict[str, Any], received: Path) -> None:
    tell(received / "c99", change)
    with pytest.raises(ExportError):
        CompiledRunner(received / "c99", ("-O0",))


@pytest.mark.parametrize("name", ["lanes", "gap_bits", "weight_bits"])
@pytest.mark.parametrize("value", [0, -1, 33, 2**31, 10**30])
def test_sizes_of_a_circuit_that_cannot_be_are_errors(
    name: str, value: int, graph: ir.Graph, received: Path
) -> None:
    tell(received / "fpga", {name: value})
    with pytest.raises(ExportError, match=f"detail '{name}' is {value}, not 1 to"):
        inspect(artifact.load(received / "fpga"), graph)


@pytest.mark.parametrize(
    "place",
    [
        *([10**6, 1, 1, 1, 1, 1], [0, 1, 2, 1, 10**6, 1], [0, 2, 1, 1, 1, 10**12]),
        *([-1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 1, 1, 10**9, 1, 1], [0.5, 1, 1, 1, 1, 1]),
        *([0, 1, 1], "0", None, {"a": 1}, [0, True, 1, 1, 1, 1]),
    ],
)
def test_activations_outside_of_the_arena_are_errors(
    place: Any, graph: ir.Graph, received: Path
) -> None:
    tell(received / "c99", {"kept": {"x": place}})
    runner = CompiledRunner(received / "c99", ("-O0",))
    with pytest.raises(ExportError, match="activation 'x' lies at"):
        runner.kept(np.zeros((1, 8, 8, 1), np.int8))


def tell(folder: Path, change: dict[str, Any]) -> None:
    """Let the manifest of an artifact say something else, and fit its digest."""
    path = artifact.manifest_path(folder)
    fields = manifests.read(path)
    manifests.sign(path, {**fields, "details": {**fields["details"], **change}})
