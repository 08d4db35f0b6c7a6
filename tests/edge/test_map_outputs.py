"""Artifacts that return maps and series: torch's layout from every runtime, integer by integer."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import nn

import edge
from edge import artifact, graph_file
from edge.check import check
from edge.define.interpret_int8 import evaluate_int8
from edge.export import int8_graph, load_onnx, save_graph
from edge.quantize import truth
from edge.runners import open_runner
from edge.save import save
from edge.targets.fpga import yosys
from edge.targets.fpga.runner import SimulatedRunner
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.verify import verify
from tests.edge.mapped import FORMS, MAPPED, mapped, of_torch, saved
from tests.edge.policy_places import in_litert_alone
from tests.edge.targets.c99.library import need_gcc
from tests.graph.exported import exported
from tests.graph.onnx_models import file
from tests.sets import slow_but

QUICK = ("segments", "a series of columns", "one channel")


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch, quick_compilation: None) -> None:
    need_gcc()
    monkeypatch.setenv("CC", "gcc")


@pytest.mark.parametrize(
    ("name", "form"),
    slow_but(
        [
            *((name, form) for name in QUICK for form in ("tflite", "onnx-qdq", "c99")),
            *(("sparse unet-w8", "tflite"), ("sparse ad-autoencoder", "c99-size")),
        ],
        [(name, form) for name in MAPPED for form in FORMS],
    ),
)
def test_no_integer_differs_and_the_layout_is_torchs(name: str, form: str, tmp_path: Path) -> None:
    model, inputs = mapped(name)
    graph = int8_graph(model, inputs)
    path = saved(graph, inputs, tmp_path, form).path
    report = check(path, inputs, layers=True)
    wanted = of_torch(model, inputs)
    assert (report.mismatches, report.outputs.integers) == (0, wanted.size)
    found = open_runner(path).predict(inputs)
    assert found.shape == wanted.shape
    assert np.sqrt(np.square(found - wanted).mean()) < 0.1 * wanted.std()
    assert open_runner(path).predict(inputs[:0]).shape == (0, *wanted.shape[1:])
    if form != "onnx-qdq":  # other roundings
        return
    step = graph.tensors[graph.outputs[0]].scale
    ours = open_runner(path, "interpreter").predict(inputs)
    assert ours.shape == wanted.shape and np.abs(ours - found).max() < 0.01 * step


@pytest.mark.parametrize("name", slow_but(["segments"], MAPPED))
def test_litert_without_xnnpack(name: str) -> None:
    model, inputs = mapped(name)
    graph = int8_graph(model, inputs)
    codes = truth.quantized(graph, ir.to_graph_layout(inputs))
    found = in_litert_alone(graph, codes)
    assert np.count_nonzero(found != evaluate_int8(graph, codes, "gemmlowp")) == 0


@pytest.mark.slow
@pytest.mark.skipif(
    yosys.obstacle("yosys") is not None,
    reason="yosys is not installed: pip install 'fedkit[bench]'",
)
@pytest.mark.parametrize("name", ["primes", "a series", "ad-autoencoder"])
def test_verilog_gives_maps(name: str, tmp_path: Path) -> None:
    model, inputs = mapped(name)
    graph = int8_graph(model, inputs)
    path = edge.export_model(graph, inputs, tmp_path / "model-fpga").path
    runner = SimulatedRunner(path, ("-O0",))
    codes = runner.quantize(inputs[:2])
    found, expected = runner.predict_int8(codes), evaluate_int8(graph, ir.to_graph_layout(codes))
    wanted = of_torch(model, inputs[:2])
    assert found.shape == ir.as_maps(wanted).shape
    assert np.count_nonzero(ir.to_graph_layout(found) != expected) == 0


def test_verilog_refuses_what_it_lacks_before_work(tmp_path: Path) -> None:
    model, inputs = mapped("segments")
    with pytest.raises(ExportError, match=r"fpga.*sigmoid"):
        edge.export_model(nn.Sequential(model, nn.Sigmoid()), inputs, tmp_path / "model-fpga")


# What is told of it


def test_ports_have_the_shape_of_the_file(tmp_path: Path) -> None:
    model, inputs = mapped("segments")
    graph = int8_graph(model, inputs)
    shapes = {}
    for form in ("tflite", "onnx-qdq", "c99"):
        folder = tmp_path / form
        shapes[form] = saved(graph, inputs, folder, form).outputs[0].shape
    assert shapes == {"tflite": (1, 8, 10, 3), "onnx-qdq": (1, 3, 8, 10), "c99": (1, 8, 10, 3)}
    header = (tmp_path / "c99" / "model-c99" / "model.h").read_text()
    assert "`out` [height, width, channels] = [8, 10, 3]" in header
    assert "MODEL_C99_OUTPUT_BYTES 240" in header


def test_a_folder_of_c_tests_itself(tmp_path: Path) -> None:
    model, inputs = mapped("segments")
    folder = saved(int8_graph(model, inputs), inputs, tmp_path, "c99").path
    made = subprocess.run(
        ["make", "-C", str(folder), "test", "CFLAGS=-O0"], capture_output=True, text=True
    )
    assert made.returncode == 0 and "0 of 960 outputs differ" in made.stdout
    assert "static int8_t out[" in (folder / "main.c").read_text()


@pytest.mark.parametrize("name", ["a series", "a series of columns", "one row"])
def test_a_series_is_told_from_a_map_of_one_row(name: str, tmp_path: Path) -> None:
    model, inputs = mapped(name)
    graph = int8_graph(model, inputs)
    rank = of_torch(model, inputs[:1]).ndim
    assert len(graph.series) == (rank == 3)
    made = saved(graph, inputs, tmp_path, "tflite")
    assert made.outputs[0].shape[1] == 1
    assert ("series" in made.details) == (rank == 3)
    again = graph_file.from_bytes(graph_file.to_bytes(graph))
    assert again.series == graph.series and again.origin is not None
    assert again.origin.floats.series == graph.series
    content = json.loads(re.findall(rb'"graph":("\{.*?\}")[,}]', graph_file.to_bytes(graph))[0])
    assert json.loads(content)["version"] == (4 if rank == 3 else 2)


@pytest.mark.parametrize("series", [3, "conv2d", ["conv2d"], ["x"], [["conv2d"]], [None]])
def test_manifests_that_tell_of_other_series_are_refused(series: Any, tmp_path: Path) -> None:
    model, inputs = mapped("segments")
    made = saved(int8_graph(model, inputs), inputs, tmp_path, "tflite")
    artifact.record(replace(made, details={**made.details, "series": series}), {})
    with pytest.raises(ExportError, match="is damaged"):
        open_runner(made.path)


@pytest.mark.parametrize("name", ["conv2d_2", "other", "x"])
def test_graphs_that_tell_of_other_series_are_refused(name: str) -> None:
    model, inputs = mapped("segments")
    with pytest.raises(ExportError, match="told to be a series"):
        verify(replace(int8_graph(model, inputs), series=(name,)))


# How far it is from the floats


def test_classes_are_those_of_each_place() -> None:
    rng = np.random.default_rng(0)
    actual, real = (rng.standard_normal((6, 5, 7, 4)) for _ in range(2))
    actual[::2] = real[::2]
    by_hand = [
        np.mean([a[y, x].argmax() == r[y, x].argmax() for y in range(5) for x in range(7)])
        for a, r in zip(actual, real, strict=True)
    ]
    assert 3 < sum(by_hand) < 5
    assert truth.same_class(actual, real) == pytest.approx(sum(by_hand), abs=1e-9)
    features = actual[:, 0, 0], real[:, 0, 0]
    assert truth.same_class(*features) == sum(
        a.argmax() == r.argmax() for a, r in zip(*features, strict=True)
    )
    assert truth.same_class(real[:0], real[:0]) == 0


def test_a_wrong_place_is_named(tmp_path: Path) -> None:
    model, inputs = mapped("segments")
    graph = int8_graph(model, inputs)
    with torch.no_grad():
        model.get_parameter("classes.bias")[1] += 1
    whole = save_graph(graph, tmp_path / "model.graph", {})
    about = {"graph": whole.path.name, "graph_sha256": whole.sha256}
    wrong = int8_graph(model, inputs)
    path = save("tflite", wrong, inputs, tmp_path / "model.tflite", about).path
    report = check(path, inputs)
    assert report.first is not None and len(report.first.position) == 4
    assert report.first.source == "classes" and report.same_class < 12


# ONNX files


@pytest.mark.parametrize("name", ["segments", "a series", "one row"])
def test_onnx_files_with_maps_become_artifacts(name: str, tmp_path: Path) -> None:
    model, inputs = mapped(name)
    content = exported(model, inputs.shape[1:])
    graph = load_onnx(content)
    wanted = of_torch(model, inputs)
    assert len(graph.series) == (wanted.ndim == 3)
    path = edge.export_model(graph, inputs, tmp_path / "model.tflite").path
    found = edge.open_artifact(path).predict(inputs)
    assert edge.check_artifact(path, inputs).mismatches == 0
    assert found.shape == wanted.shape
    assert np.sqrt(np.square(found - wanted).mean()) < 0.05 * wanted.std()


@pytest.mark.parametrize(
    ("operator", "shape", "axes", "rank"),
    [
        ("Squeeze", (3, 3, 8), [2], 3),
        ("Squeeze", (3, 3, 3), [2, 3], 2),
        ("Unsqueeze", (3, 5), [2], 4),
    ],
)
def test_an_output_has_the_dimensions_of_the_file(
    operator: str, shape: tuple[int, ...], axes: list[int], rank: int, tmp_path: Path
) -> None:
    kernel = np.random.default_rng(0).standard_normal((4, 3, *[3] * (len(shape) - 1)))
    content = file(
        helper.make_node("Conv", ["x", "k"], ["h"]),
        helper.make_node(operator, ["h", "axes"], ["y"]),
        shape=(1, *shape),
        k=kernel.astype(np.float32),
        axes=np.array(axes),
    ).SerializeToString()
    inputs = np.random.default_rng(1).standard_normal((12, *shape)).astype(np.float32)
    path = edge.export_model(load_onnx(content), inputs, tmp_path / "model.tflite").path
    found = edge.open_artifact(path).predict(inputs)
    runtime = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    wanted = np.concatenate([runtime.run(None, {"x": each[None]})[0] for each in inputs])
    assert found.shape == wanted.shape and wanted.ndim == rank
    assert np.sqrt(np.square(found - wanted).mean()) < 0.05 * wanted.std()


def test_a_quantised_file_with_a_map_keeps_its_integers(tmp_path: Path) -> None:
    model, inputs = mapped("segments")
    graph = int8_graph(model, inputs)
    first = saved(graph, inputs, tmp_path, "onnx-qdq").path
    again = load_onnx(first.read_bytes())
    assert again.tensors[again.outputs[0]].dtype == "int8"
    codes = truth.quantized(graph, ir.to_graph_layout(inputs))
    assert np.array_equal(evaluate_int8(again, codes), evaluate_int8(graph, codes))
