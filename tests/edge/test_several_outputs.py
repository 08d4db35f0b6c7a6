"""Artifacts with several outputs: in their order from every runtime, integer by integer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from onnx import helper, numpy_helper
from torch import Tensor, nn

import edge
from edge import graph_file
from edge.bench.build import build
from edge.bench.targets import TARGETS
from edge.check import check
from edge.define.interpret_int8 import evaluate_int8, outputs_int8
from edge.export import float_graph, int8_graph, load_onnx
from edge.quantize import truth
from edge.runners import open_runner
from edge.save import save
from edge.targets.tflite import emitter as tflite
from fedkit.cli.export import evaluate as evaluate_artifact
from fedkit.core.errors import BenchError, ExportError, PlanError
from fedkit.engine.plan.capture import capture
from fedkit.graph import ir
from tests.command_line import fedkit
from tests.edge.mapped import FORMS, SEVERAL, SHAPE, all_of_torch, saved, several
from tests.edge.models import Images, pruned
from tests.edge.targets.c99.library import need_gcc
from tests.graph.exported import exported
from tests.sets import slow_but

QUICK = ("classes and a map", "what is joined")


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch, quick_compilation: None) -> None:
    need_gcc()
    monkeypatch.setenv("CC", "gcc")


def assert_near(found: Any, wanted: list[Images], most: float = 0.05) -> None:
    assert isinstance(found, tuple)
    assert [each.shape for each in found] == [each.shape for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert np.sqrt(np.square(one - other).mean()) < most * other.std()


@pytest.mark.parametrize(
    ("name", "form"),
    slow_but(
        [(name, form) for name in QUICK for form in ("tflite", "onnx-qoperator", "c99")],
        [(name, form) for name in SEVERAL for form in FORMS],
    ),
)
def test_no_integer_of_any_output_differs(name: str, form: str, tmp_path: Path) -> None:
    model, inputs = several(name)
    graph = int8_graph(model, inputs)
    made = saved(graph, inputs, tmp_path, form)
    wanted = all_of_torch(model, inputs)
    assert [port.name for port in made.outputs] == list(graph.outputs)
    report = check(made.path, inputs, layers=True)
    assert report.mismatches == 0 and report.same_class == pytest.approx(12)
    assert report.outputs.integers == sum(each.size for each in wanted)
    assert_near(open_runner(made.path).predict(inputs), wanted)
    assert_near(open_runner(made.path, "interpreter").predict(inputs), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SEVERAL)
def test_pruned_models_too(name: str, form: str, tmp_path: Path) -> None:
    model, inputs = several(name)
    with torch.no_grad():
        pruned(model, 0.3).get_parameter("a.weight")[1] = 0  # a channel that says nothing
    graph = int8_graph(model, inputs)
    made = saved(graph, inputs, tmp_path, form)
    assert check(made.path, inputs).mismatches == 0
    assert_near(open_runner(made.path).predict(inputs), all_of_torch(model, inputs))


@pytest.mark.parametrize("name", slow_but(QUICK, SEVERAL))
def test_litert_without_xnnpack(name: str) -> None:
    model, inputs = several(name)
    graph = int8_graph(model, inputs)
    codes = truth.quantized(graph, ir.to_graph_layout(inputs))
    runtime = Interpreter(
        model_content=tflite.emit(graph),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    runtime.allocate_tensors()
    expected = outputs_int8(graph, codes, "gemmlowp")
    for number, one in enumerate(codes):
        runtime.set_tensor(runtime.get_input_details()[0]["index"], one[None])
        runtime.invoke()
        for port, each in zip(runtime.get_output_details(), expected, strict=True):
            assert np.array_equal(runtime.get_tensor(port["index"])[0], each[number])


def test_the_first_output_is_what_one_would_be() -> None:
    model, inputs = several("classes and a map")
    graph = int8_graph(model, inputs)
    codes = truth.quantized(graph, ir.to_graph_layout(inputs))
    alone = evaluate_int8(ir.until(graph, graph.outputs[0]), codes)
    first, second = outputs_int8(graph, codes)
    assert np.array_equal(alone, first) and np.array_equal(evaluate_int8(graph, codes), first)
    assert first.shape == (12, 4) and second.shape == (12, 8, 10, 3)


# C


def test_c_has_a_pointer_for_each_output(tmp_path: Path) -> None:
    model, inputs = several("classes and a map")
    made = saved(int8_graph(model, inputs), inputs, tmp_path, "c99")
    header = (made.path / "model.h").read_text()
    assert (
        "int model_c99_invoke(const int8_t *in, int8_t *out_0, int8_t *out_1, uint8_t *arena);"
        in header
    )
    assert "`out_0` [4], `out_1` [height, width, channels] = [8, 10, 3]." in header
    for macro in ("OUTPUT_0_BYTES 4", "OUTPUT_1_BYTES 240", "OUTPUT_1_ZERO_POINT ("):
        assert f"#define MODEL_C99_{macro}" in header
    flags = "CFLAGS=-O0 -Werror"
    tested = subprocess.run(
        ["make", "-C", str(made.path), "test", flags], capture_output=True, text=True
    )
    assert tested.returncode == 0, tested.stderr
    assert f"0 of {4 * 244} outputs differ" in tested.stdout


def test_a_test_of_c_sees_each_output(tmp_path: Path) -> None:
    model, inputs = several("classes and a map")
    made = saved(int8_graph(model, inputs), inputs, tmp_path, "c99")
    vectors = made.path / "test_vector.h"
    text = vectors.read_text()
    start = text.index("test_outputs_1")
    end = text.index("};", start)
    vectors.write_text(text[: end - 2] + " + 1" + text[end - 2 :])  # of the last value
    tested = subprocess.run(
        ["make", "-C", str(made.path), "test", "CFLAGS=-O0"], capture_output=True, text=True
    )
    assert tested.returncode != 0 and f"1 of {4 * 244} outputs differ" in tested.stdout


def test_manifests_with_other_sizes_do_not_compile(tmp_path: Path) -> None:
    model, inputs = several("classes and a map")
    made = saved(int8_graph(model, inputs), inputs, tmp_path, "c99")
    ports = made.outputs[0], replace(made.outputs[1], shape=(1, 8, 10, 2))
    edge.artifact.record(replace(made, outputs=ports), {})
    with pytest.raises(ExportError, match="cannot compile"):
        open_runner(made.path)


# What has one output alone


def test_verilog_is_refused_by_name_before_work(tmp_path: Path) -> None:
    model, inputs = several("classes and a map")
    with pytest.raises(ExportError, match=r"2 outputs \('linear', 'conv2d_1'\), and the fpga"):
        edge.export_model(model, inputs, tmp_path / "model-fpga")
    graph = int8_graph(model, inputs)
    for keep in (False, True):
        with pytest.raises(ExportError, match=r"2 outputs .*the FPGA target gives one"):
            save("fpga", graph, inputs, tmp_path / "model-fpga", {}, keep=keep)


def test_training_has_one_output() -> None:
    model, _ = several("before and after")
    with pytest.raises(PlanError, match="not a single tensor; a plan returns"):
        capture(model, SHAPE)


def test_tasks_and_boards_measure_one_output(tmp_path: Path) -> None:
    from rich.console import Console

    model, inputs = several("classes and a map")
    made = saved(int8_graph(model, inputs), inputs, tmp_path, "c99")
    with pytest.raises(ExportError, match="has 2 outputs, and a task measures one"):
        evaluate_artifact(made.path, "digits", "", False, Console(quiet=True))
    with pytest.raises(BenchError, match="has 2 outputs"):
        build(made, next(iter(TARGETS.values())), tmp_path)


# What a model may return


class Named(nn.Module):
    """Some values of a layer, returned as a function says."""

    def __init__(self, returns: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.returns = nn.Linear(5, 3), returns

    def forward(self, x: Tensor) -> Any:
        return self.returns(x, self.layer(x))


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "a dict": (lambda x, y: {"a": y, "b": y.relu()}, "returns a dict of 2 tensors.*return a tuple"),
    "a dict in a tuple": (lambda x, y: (y, {"b": y.relu()}), "returns a dict of 2 tensors"),
    "one value twice": (lambda x, y: (y, y), "returns 'linear' twice, as output 0 and as output 1"),
    "its input": (lambda x, y: (y, x), "output 1 of the model is its input"),
    "nothing beside": (lambda x, y: (y, None), "output 1 of the model is None"),
    "a number": (lambda x, y: (3, y), "output 0 of the model is 3"),
    "a constant": (lambda x, y: (y, torch.ones(1, 2)), "does not depend on its input"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_output_is_refused(kind: str) -> None:
    returns, reason = REFUSED[kind]
    with pytest.raises(ExportError, match=reason):
        float_graph(Named(returns).eval(), (5,))


def test_a_dict_of_one_is_taken() -> None:
    graph = float_graph(Named(lambda x, y: {"logits": y}).eval(), (5,))
    assert len(graph.outputs) == 1


def test_one_bad_output_of_several_is_refused() -> None:
    """Noise of the other does not hide it."""
    inputs = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)

    def one_is_lost(x: Tensor, y: Tensor) -> Any:
        return x.relu(), torch.cat([y, 100 * y], 1)[:, :3]  # of one scale

    model = Named(one_is_lost).eval()
    with pytest.raises(ExportError, match="not close to the float model"):
        int8_graph(model, inputs)
    with pytest.warns(truth.ExportWarning, match="not close to the float model"):
        graph = int8_graph(model, inputs, accept_error=True)
    assert graph.origin is not None
    noise = [graph.origin.noise[name] for name in graph.outputs]
    assert noise[0] < 0.05 and noise[1] > 0.4
    assert truth.of(graph.origin, graph.outputs).output == noise[1]


# Files


def test_graph_files_hold_several(tmp_path: Path) -> None:
    model, inputs = several("a series and a column")
    graph = int8_graph(model, inputs)
    assert graph.series == (graph.outputs[0],)
    content = graph_file.to_bytes(graph)
    again = graph_file.from_bytes(content)
    assert (again.outputs, again.series) == (graph.outputs, graph.series)
    assert graph_file.to_bytes(again) == content


def two_outputs() -> tuple[bytes, Images, list[Images]]:
    model, inputs = several("classes and a map")
    names: dict[str, Any] = {"output_names": ["classes", "pixels"]}
    return exported(model, SHAPE, **names), inputs, all_of_torch(model, inputs)


def test_onnx_files_with_several_become_artifacts(tmp_path: Path) -> None:
    content, inputs, wanted = two_outputs()
    for target in ("tflite", "onnx"):
        path = edge.export_model(load_onnx(content), inputs, tmp_path / f"model.{target}").path
        assert edge.check_artifact(path, inputs).mismatches == 0
        assert_near(edge.open_artifact(path).predict(inputs), wanted)
    ports = edge.artifact.load(tmp_path / "model.onnx").outputs
    assert [port.name for port in ports] == ["classes", "pixels"]
    assert [each.name for each in onnx.load(str(tmp_path / "model.onnx")).graph.output] == [
        "classes",
        "pixels",
    ]


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (("Identity", "h"), "returns 'h' twice.*--output"),
        (("Identity", "x"), "output 1 of the model is its input 'x'.*--output"),
        (("Identity", "w"), "does not depend on its input"),
    ],
)
def test_outputs_of_a_file_that_are_no_values_are_refused(
    last: tuple[str, str], reason: str
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node(last[0], [last[1]], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 4)) for name in ("h", "y")
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 4))
    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    if last[1] == "w":
        ports[1] = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (4, 4))
    graph = helper.make_graph(nodes, "main", [x], ports, [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ExportError, match=reason):
        load_onnx(model.SerializeToString())
    assert load_onnx(model.SerializeToString(), outputs=["h"]).outputs == ("h",)


def test_outputs_of_a_file_are_chosen_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, inputs, wanted = two_outputs()
    (tmp_path / "two.onnx").write_bytes(content)
    np.save(tmp_path / "x.npy", inputs)
    inner = next(node.output[0] for node in onnx.load_from_string(content).graph.node)
    for number, chosen in enumerate((["classes"], ["pixels", "classes"], ["pixels", inner])):
        names = " ".join(f"--output {name}" for name in chosen)
        out = tmp_path / f"m{number}.tflite"
        command = f"import {tmp_path / 'two.onnx'} {names} --calibration {tmp_path / 'x.npy'}"
        assert fedkit(f"{command} --out {out} --json", monkeypatch) == 0
        read = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert [port["name"] for port in read["outputs"]] == chosen
        assert edge.check_artifact(out, inputs).mismatches == 0
        assert [port.name for port in edge.artifact.load(out).outputs] == chosen
    swapped = edge.open_artifact(tmp_path / "m1.tflite").predict(inputs)
    assert_near(swapped, wanted[::-1])
    alone = edge.open_artifact(tmp_path / "m0.tflite").predict(inputs)
    assert isinstance(alone, np.ndarray) and alone.shape == (12, 4)


def test_quantised_files_with_several_keep_their_integers(tmp_path: Path) -> None:
    model, inputs = several("classes and a map")
    graph = int8_graph(model, inputs)
    again = load_onnx(saved(graph, inputs, tmp_path, "onnx-qdq").path)
    assert again.tensors[again.inputs[0]].dtype == "int8" and len(again.outputs) == 2
    codes = truth.quantized(graph, ir.to_graph_layout(inputs))
    for one, other in zip(outputs_int8(again, codes), outputs_int8(graph, codes), strict=True):
        assert np.array_equal(one, other)
