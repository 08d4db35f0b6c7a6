"""Scales that are powers of two: what is rescaled by them, and that ties trouble no target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from edge.define.interpret_int8 import evaluate_int8
from edge.export import int8_graph, save_tflite
from edge.quantize.to_int8 import Scaling, quantize
from edge.targets.c99.calls import Goal
from edge.targets.onnx import emitter as onnx
from edge.targets.onnx.runner import OnnxRunner
from edge.targets.tflite.runner import Runtime, TfliteRunner
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.nn.zoo import build_model
from tests.edge.conftest import TrainedModel
from tests.edge.define.tflite_runtimes import assert_equal_integers, int8_inputs
from tests.edge.models import MODELS, Flat, Images, images
from tests.edge.targets.c99.library import need_gcc
from tests.edge.targets.compiled import assert_same_integers

Build = Callable[..., ir.Graph]
Randomise = Callable[[nn.Module], nn.Module]


def scales(graph: ir.Graph) -> Iterator[float]:
    for tensor in graph.tensors.values():
        assert tensor.quantization is not None
        yield from tensor.quantization.scale


def is_power_of_two(values: NDArray[np.float64] | list[float]) -> bool:
    return bool((np.frexp(values)[0] == 0.5).all())


def test_all_scales_are_powers_of_two(randomise: Randomise) -> None:
    model, data = randomise(build_model("resnet8", (3, 8, 8), 10)), images(3, 8, 8, n=20)
    assert is_power_of_two(list(scales(int8_graph(model, data, scales="pow2"))))
    assert not is_power_of_two(list(scales(int8_graph(model, data))))


@settings(max_examples=40, deadline=None)
@given(
    weight_size=st.integers(-12, 12),
    bias_size=st.integers(-12, 12),
    input_size=st.integers(-12, 12),
    tiny_channel=st.integers(-12, 0),
)
def test_whatever_the_sizes_sums_are_shifted(
    weight_size: int, bias_size: int, input_size: int, tiny_channel: int, linear_graph: Build
) -> None:
    random = np.random.default_rng(1)
    weight = random.standard_normal((3, 5)) * 10.0**weight_size
    weight[1] *= 10.0**tiny_channel
    bias = random.standard_normal(3) * 10.0**bias_size
    inputs = (random.standard_normal((20, 5)) * 10.0**input_size).astype(np.float32)
    graph = quantize(linear_graph(weight, bias), inputs, scales="pow2")
    x, w, _ = (graph.tensors[name] for name in graph.ops[0].inputs)
    assert w.quantization is not None
    assert is_power_of_two(x.scale * np.asarray(w.quantization.scale) / graph.tensors["y"].scale)
    free = quantize(linear_graph(weight, bias), inputs)
    for name in ("x", "y"):
        assert 1 <= graph.tensors[name].scale / free.tensors[name].scale <= 4


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (6, 31), (4, 7)])
def test_of_all_powers_of_two_weights_take_the_best(
    linear_graph: Build, bits: int, most: int
) -> None:
    weight = np.random.default_rng(0).standard_t(4, (5, 300))
    graph = quantize(
        linear_graph(weight, np.zeros(5)), np.ones((1, 300), np.float32), 100, bits, "pow2"
    )
    w = graph.tensors[graph.ops[0].inputs[1]]
    assert w.quantization is not None

    def squares(scale: NDArray[np.float64]) -> NDArray[np.float64]:
        codes = np.clip(np.rint(weight / scale[:, None]), -most, most)
        return np.asarray(np.square(codes * scale[:, None] - weight).sum(axis=1))

    found = squares(np.asarray(w.quantization.scale))
    assert all(
        (found <= squares(np.full(5, 2.0**power)) * (1 + 1e-9)).all() for power in range(-9, 3)
    )


@pytest.mark.slow
def test_a_trained_model_keeps_its_accuracy(trained: TrainedModel) -> None:
    def accuracy(scales: Scaling) -> float:
        graph = int8_graph(trained.model, trained.train[:200], scales=scales)
        codes = ir.to_graph_layout(int8_inputs(graph, trained.test))
        return float((evaluate_int8(graph, codes).argmax(1) == trained.targets).mean())

    assert accuracy("pow2") >= accuracy("float") - 0.006 > 0.9


# Targets


@pytest.mark.parametrize("name", MODELS)
def test_each_op_is_the_runtimes(name: str, runtime: Runtime) -> None:
    torch.manual_seed(1)
    body = MODELS[name]()
    model = body if name in ("residual", "flatten, linear") else Flat(body)
    data = images(3, 8, 10, n=60)
    assert_equal_integers(int8_graph(model.eval(), data, scales="pow2"), data, runtime)


@pytest.mark.parametrize("side", [(4, 4), (8, 4), (5, 3)])
def test_means_are_the_runtimes(side: tuple[int, int], runtime: Runtime) -> None:
    data = images(16, *side, n=96)
    graph = int8_graph(Flat(nn.AdaptiveAvgPool2d(1)).eval(), data[:32], scales="pow2")
    assert_equal_integers(graph, data, runtime)


@pytest.fixture(scope="module")
def whole(randomise: Randomise) -> tuple[ir.Graph, Images]:
    """Return a graph with residuals, and its inputs as codes."""
    model, data = randomise(build_model("resnet8", (3, 16, 16), 10)), images(3, 16, 16, n=60)
    graph = int8_graph(model, data[:20], scales="pow2")
    return graph, data


def test_a_whole_model_is_the_runtimes(whole: tuple[ir.Graph, Images], runtime: Runtime) -> None:
    assert_equal_integers(*whole, runtime)


def test_a_whole_model_is_onnxruntimes(whole: tuple[ir.Graph, Images]) -> None:
    graph, data = whole
    codes = int8_inputs(graph, data)
    found = OnnxRunner(onnx.emit(graph, "qdq")).predict_int8(codes)
    expected = evaluate_int8(graph, ir.to_graph_layout(codes), "onnxruntime")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("goal", ["speed", "size"])
def test_a_whole_model_in_c(whole: tuple[ir.Graph, Images], goal: Goal, tmp_path: Path) -> None:
    need_gcc()
    graph, data = whole
    assert_same_integers(graph, data[:20], tmp_path / "model", goal)


def test_an_export_says_so(tmp_path: Path) -> None:
    model, data = build_model("resnet8", (1, 8, 8), 10).eval(), images(1, 8, 8, n=4)
    graph = int8_graph(model, data, scales="pow2")
    saved = save_tflite(graph, data, tmp_path / "model.tflite", {})
    assert is_power_of_two([port.scale for port in (*saved.inputs, *saved.outputs)])
    assert TfliteRunner(saved.path).predict(data).shape == (4, 10)


def test_other_scales_are_refused(linear_graph: Build) -> None:
    with pytest.raises(ExportError, match="scales is 'log3'; choose one of float, pow2"):
        quantize(
            linear_graph(np.ones((1, 3)), np.zeros(1)),
            np.ones((1, 3), np.float32),
            scales="log3",  # type: ignore[arg-type]
        )
