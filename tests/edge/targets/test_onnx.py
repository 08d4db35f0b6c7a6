"""The .onnx file says what the graph says, in both forms, and onnxruntime's integers are ours."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import edge.targets.onnx
from edge import artifact
from edge.define.interpret_int8 import evaluate_int8
from edge.export import export_onnx, int8_graph
from edge.quantize.to_int8 import quantize
from edge.targets.onnx import emitter as emitter
from edge.targets.onnx.runner import OnnxRunner
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_torch import lower
from fedkit.graph.ops.registry import CHANNEL_AXIS
from fedkit.graph.verify import verify
from fedkit.nn.zoo import build_model
from tests.edge.define.tflite_runtimes import WHOLE, int8_inputs
from tests.edge.models import MODELS, Flat, Residual, images
from tests.sets import slow, slow_but

FORMS: tuple[emitter.Form, ...] = ("qdq", "qoperator")
Random = np.random.Generator
Codes = NDArray[np.int8]


class Twice(nn.Module):
    """A map added to itself, and to what an activation makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return ((y + y) + torch.relu(y)).flatten(1)


MORE: dict[str, Callable[[], nn.Module]] = {
    "a map added to itself": Twice,
    "relu behind a mean": lambda: Flat(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.ReLU6())),
    "relu behind an average": lambda: Flat(nn.Sequential(nn.AvgPool2d(2), nn.ReLU(), nn.ReLU6())),
    "linear behind a map": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 5)
    ),
}


def checked(graph: ir.Graph, form: emitter.Form) -> bytes:
    """Return the file, found sound by ONNX's own checker."""
    content = emitter.emit(graph, form)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    return content


def assert_equal_integers(graph: ir.Graph, codes: Codes, form: emitter.Form) -> None:
    """Compare all integers; `codes` are in torch's layout."""
    found = OnnxRunner(checked(graph, form)).predict_int8(codes)
    expected = evaluate_int8(graph, ir.to_graph_layout(codes), "onnxruntime")
    if expected.ndim == 4:
        expected = np.moveaxis(expected, 3, 1)
    np.testing.assert_array_equal(found, expected)


# Models


@pytest.mark.parametrize("seed", [0, slow(1)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [*MODELS, *MORE])
def test_each_op_is_the_runtimes(
    name: str, form: emitter.Form, seed: int, randomise: Callable[[nn.Module], nn.Module]
) -> None:
    torch.manual_seed(seed)
    body = randomise({**MODELS, **MORE}[name]())
    model = body if name in ("residual", "flatten, linear", *MORE) else Flat(body).eval()
    data = images(3, 8, 10, n=40)
    graph = int8_graph(model, data[:20] * (seed + 1))
    assert_equal_integers(graph, int8_inputs(graph, data), form)


@pytest.mark.parametrize("name", slow_but(("resnet8",), WHOLE))
def test_whole_models_are_the_runtimes(
    name: str, randomise: Callable[[nn.Module], nn.Module]
) -> None:
    model, data = randomise(build_model(name, WHOLE[name], 10)), images(*WHOLE[name], n=24)
    graph = int8_graph(model, data[:12])
    for form in FORMS:
        assert_equal_integers(graph, int8_inputs(graph, data), form)


# Any scale and any zero point


def activation(random: Random, name: str, shape: ir.Shape, scale: float) -> ir.Tensor:
    quantization = ir.Quantization((float(np.float32(scale)),), (int(random.integers(-128, 128)),))
    return ir.Tensor(name, shape, "int8", None, quantization)


def a_scale(random: Random) -> float:
    """Return a power of two, whose sums are often halves, or anything else."""
    power, other = 2.0 ** random.integers(-6, 1), np.exp(random.uniform(-4, 0))
    return float(power if random.random() < 0.5 else other)


def a_shape(random: Random) -> ir.Shape:
    return (1, *(int(size) for size in random.integers((2, 2, 1), (8, 8, 20))))


def graph_of(tensors: list[ir.Tensor], *ops: ir.Op) -> ir.Graph:
    graph = ir.Graph({tensor.name: tensor for tensor in tensors}, ops, ("x",), ("y",))
    verify(graph)
    return graph


def addition(random: Random) -> ir.Graph:
    shape, left, right = a_shape(random), a_scale(random), a_scale(random)
    out = max(left, right) * random.choice([0.5, 1, 1.3, 2])
    tensors = [
        activation(random, name, shape, scale)
        for name, scale in (("x", left), ("p", right), ("y", out))
    ]
    operands = ("x", "p") if random.random() < 0.5 else ("p", "x")
    return graph_of(tensors, ir.Op("relu", ("x",), ("p",)), ir.Op("add", operands, ("y",)))


def mean(random: Random) -> ir.Graph:
    shape, scale = a_shape(random), a_scale(random)
    out = activation(random, "y", (1, shape[3]), scale * random.choice([0.25, 0.5, 0.9, 1]))
    return graph_of([activation(random, "x", shape, scale), out], ir.Op("mean", ("x",), ("y",)))


def relu(random: Random) -> ir.Graph:
    shape, scale = a_shape(random), a_scale(random)
    out = activation(random, "y", shape, scale * random.choice([0.3, 0.5, 2]))
    kind: ir.Kind = "relu" if random.random() < 0.5 else "relu6"
    return graph_of([activation(random, "x", shape, scale), out], ir.Op(kind, ("x",), ("y",)))


def a_window(random: Random) -> ir.Window:
    kernel, stride = (int(size) for size in random.integers(1, 3, 2)), int(random.integers(1, 3))
    high, wide = kernel
    padding = (int(random.integers(high)), 0, 0, int(random.integers(wide)))
    return ir.Window((high, wide), (stride, stride), (1, 1), padding)


def average(random: Random) -> ir.Graph:
    x, window = activation(random, "x", a_shape(random), a_scale(random)), a_window(random)
    y = replace(x, name="y", shape=(1, *window.output(*x.shape[1:3]), x.shape[3]))
    return graph_of([x, y], ir.Op("avg_pool2d", ("x",), ("y",), window))


def weighted(kind: ir.Kind) -> Callable[[Random], ir.Graph]:
    def make(random: Random) -> ir.Graph:
        shape, window = a_shape(random), None if kind == "linear" else a_window(random)
        shape = (1, 37) if window is None else shape
        count = 2 * shape[-1] if kind == "depthwise_conv2d" else int(random.integers(1, 20))
        x = activation(random, "x", shape, a_scale(random))
        weight_shape: ir.Shape = (count, shape[-1])
        if window is not None:
            kernel = window.kernel
            weight_shape = (count, *kernel, shape[-1]) if kind == "conv2d" else (1, *kernel, count)
        scales = np.array([a_scale(random) for _ in range(count)], np.float32).astype(np.float64)
        out = () if window is None else window.output(shape[1], shape[2])
        y_scale = x.scale * scales.max() * random.choice([1, 64, 256, 1000])
        y = activation(random, "y", (1, *out, count), y_scale)
        weight = constant("w", random.integers(-127, 128, weight_shape, np.int8), scales, kind)
        bias = constant("b", random.integers(-3000, 3000, count, np.int32), x.scale * scales)
        act: ir.Activation = random.choice(["none", "relu", "relu6"])
        return graph_of([x, weight, bias, y], ir.Op(kind, ("x", "w", "b"), ("y",), window, act))

    return make


def constant(
    name: str, data: ir.Array, scales: NDArray[np.float64], kind: ir.Kind = "linear"
) -> ir.Tensor:
    zeros = (0,) * len(scales)
    quantization = ir.Quantization(tuple(scales.tolist()), zeros, CHANNEL_AXIS[kind])
    dtype: ir.DType = "int8" if data.dtype == np.int8 else "int32"
    return ir.Tensor(name, data.shape, dtype, data, quantization)


KINDS: dict[str, Callable[[Random], ir.Graph]] = {
    "add": addition,
    "mean": mean,
    "relu": relu,
    "average": average,
    "conv2d": weighted("conv2d"),
    "depthwise_conv2d": weighted("depthwise_conv2d"),
    "linear": weighted("linear"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_the_runtimes_at_any_scale(kind: str) -> None:
    random = np.random.default_rng(0)
    for number in range(24):
        graph = KINDS[kind](random)
        codes = random.integers(-128, 128, (8, *graph.tensors["x"].shape[1:]), np.int8)
        codes = np.moveaxis(codes, 3, 1) if codes.ndim == 4 else codes
        assert_equal_integers(graph, codes, FORMS[number % 2])


@pytest.mark.parametrize("kind", ["conv2d", "linear"])
def test_no_product_saturates_on_its_way(kind: ir.Kind) -> None:
    random = np.random.default_rng(0)
    graph = weighted(kind)(random)
    extreme = replace(graph.tensors["w"], data=np.full_like(graph.constant("w"), 127))
    graph = replace(graph, tensors={**graph.tensors, "w": extreme})
    shape = (2, *emitter.file_shape(graph.tensors["x"].shape)[1:])
    for value in (-128, 127):
        assert_equal_integers(graph, np.full(shape, value, np.int8), "qdq")


# The file


def operators(content: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_from_string(content).graph.node}


def test_the_forms_hold_what_their_names_say() -> None:
    graph = int8_graph(build_model("resnet8", (3, 8, 8), 10).eval(), images(3, 8, 8))
    assert operators(emitter.emit(graph, "qdq")) == {
        *("QuantizeLinear", "DequantizeLinear", "Reshape"),
        *("Conv", "Gemm", "Add", "GlobalAveragePool"),
    }
    assert operators(emitter.emit(graph, "qoperator")) == {
        *("Reshape", "QLinearConv", "QGemm", "QLinearAdd", "QLinearGlobalAveragePool")
    }


def test_an_image_goes_in_as_torch_has_it() -> None:
    graph = int8_graph(build_model("resnet8", (3, 8, 6), 10).eval(), images(3, 8, 6))
    model = onnx.load_from_string(emitter.emit(graph))
    (x,), (y,) = model.graph.input, model.graph.output
    assert [size.dim_value for size in x.type.tensor_type.shape.dim] == [1, 3, 8, 6]
    assert [size.dim_value for size in y.type.tensor_type.shape.dim] == [1, 10]
    assert x.type.tensor_type.elem_type == y.type.tensor_type.elem_type == onnx.TensorProto.INT8


@pytest.mark.parametrize("name", ["residual", "depthwise convolution", "mean"])
def test_computed_in_float_as_it_is_written_it_is_a_step_away_at_most(name: str) -> None:
    body = MODELS[name]()
    data = images(3, 8, 10, n=6)
    graph = int8_graph((body if name == "residual" else Flat(body)).eval(), data)
    codes = int8_inputs(graph, data)
    reference = ReferenceEvaluator(onnx.load_from_string(emitter.emit(graph)))
    found = [reference.run(None, {graph.inputs[0]: code[None]})[0][0] for code in codes]  # type: ignore[index]
    expected = evaluate_int8(graph, ir.to_graph_layout(codes), "onnxruntime")
    errors = np.abs(np.array(found, int) - expected)
    assert errors.max() <= 1
    assert errors.mean() < 0.01


def test_the_same_graph_gives_the_same_bytes() -> None:
    graph = int8_graph(Residual(), images(3, 8, 8))
    for form in FORMS:
        assert emitter.emit(graph, form) == emitter.emit(graph, form)
    assert emitter.emit(graph, "qdq") != emitter.emit(graph, "qoperator")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("act", ["relu", "relu6"])
def test_an_activation_inside_the_range_of_int8_is_a_clip(
    act: ir.Activation, form: emitter.Form
) -> None:
    graph = weighted("conv2d")(np.random.default_rng(1))
    low_zero = ir.Quantization((0.5,), (-20,))  # relu6 ends at -8
    tensors = {**graph.tensors, "y": replace(graph.tensors["y"], quantization=low_zero)}
    graph = replace(graph, tensors=tensors, ops=(replace(graph.ops[0], activation=act),))
    assert "Clip" in operators(emitter.emit(graph, form))
    shape = emitter.file_shape(graph.tensors["x"].shape)
    codes = np.random.default_rng(0).integers(-128, 128, (6, *shape[1:]), np.int8)
    assert_equal_integers(graph, codes, form)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, 2, 3, 4), (1, 24)),
        ((1, 24), (1, 2, 3, 4)),
        ((1, 2, 3, 4), (1, 4, 3, 2)),
        ((1, 2, 3, 1), (1, 6)),
        ((1, 1, 1, 4), (1, 2, 2, 1)),
    ],
)
def test_a_reshape_counts_channels_last(before: ir.Shape, after: ir.Shape) -> None:
    quantization = ir.Quantization((1.0,), (0,))
    tensors = [
        ir.Tensor(name, shape, "int8", None, quantization)
        for name, shape in (("x", before), ("y", after))
    ]
    graph = graph_of(tensors, ir.Op("reshape", ("x",), ("y",)))
    shape = (2, *emitter.file_shape(before)[1:])
    codes = np.arange(math.prod(shape), dtype=np.int8).reshape(shape)
    assert_equal_integers(graph, codes, "qdq")


# What is refused


def test_all_that_has_no_onnx_form_is_named_at_once() -> None:
    graph = lower(Flat(nn.Sequential(nn.BatchNorm2d(1), nn.AvgPool2d(2))), (1, 4, 4))
    ops = [
        replace(op, window=replace(op.window, dilation=(2, 1))) if op.window else op
        for op in graph.ops
    ]
    with pytest.raises(ExportError) as refused:
        emitter.emit(replace(graph, ops=tuple(ops)))
    for part in ("is float32, not int8", "op affine of module 'body.0'", "module 'body.1'"):
        assert part in str(refused.value)


def test_an_unknown_form_is_refused() -> None:
    graph = int8_graph(Residual(), images(3, 8, 8))
    with pytest.raises(ExportError, match="'qat' is unknown; choose from qdq, qoperator"):
        emitter.emit(graph, "qat")  # type: ignore[arg-type]


# The runner


@pytest.fixture
def content(linear_graph: Callable[..., ir.Graph]) -> bytes:
    """Return y = x[0] + 2 x[1] for inputs in [-1, 1]."""
    corners = np.array([[1, 1], [-1, -1]], np.float32)
    return emitter.emit(quantize(linear_graph(np.array([[1.0, 2.0]]), np.zeros(1)), corners))


def test_predictions_keep_order_and_shape(content: bytes) -> None:
    inputs = np.array([[1, 1], [0, 0.5], [0, 0], [-1, 0]], np.float32)
    runner = OnnxRunner(content, threads=2)
    assert np.abs(runner.predict(inputs)[:, 0] - [3, 1, 0, -1]).max() < 0.05
    assert runner.predict(inputs[:0]).shape == (0, 1)
    found = runner.latency(repeats=20)
    assert 0 < found["median_us"] <= found["p95_us"]


def test_inputs_that_do_not_fit_are_refused(content: bytes) -> None:
    with pytest.raises(
        ExportError, match=r"the model takes int8 \[n, \.\.\.\] with \(2,\) in NCHW"
    ):
        OnnxRunner(content).predict_int8(np.zeros((2, 3), np.int8))


@pytest.mark.parametrize("damaged", [b"", b"not a model" * 40, b"half"])
def test_a_corrupt_file_is_refused(content: bytes, damaged: bytes) -> None:
    damaged = content[: len(content) // 2] if damaged == b"half" else damaged
    with pytest.raises(ExportError, match=r"refuses the model of \d+ bytes"):
        OnnxRunner(damaged)


def test_a_file_of_others_is_refused(content: bytes) -> None:
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    with pytest.raises(ExportError, match="do not give scale and zero point of 'x'"):
        OnnxRunner(model.SerializeToString())


def test_a_missing_runtime_is_named_with_its_remedy(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match="pip install onnxruntime"):
        OnnxRunner(content)


# The export


@pytest.mark.parametrize("form", FORMS)
def test_an_exported_model_is_as_good_as_it_was(  # type: ignore[no-untyped-def]
    form: emitter.Form, trained, torch_outputs, tmp_path: Path
) -> None:
    path = tmp_path / "digits.onnx"
    saved = export_onnx(trained.model, trained.train[:300], path, {"task": "digits"}, form)
    assert artifact.load(path) == saved
    assert (saved.target, saved.inputs[0].shape) == (f"onnx-{form}", (1, 1, 8, 8))
    assert "onnxruntime" in saved.versions
    before, after = (
        (logits.argmax(1) == trained.targets).mean()
        for logits in (
            torch_outputs(trained.model, trained.test),
            OnnxRunner(path).predict(trained.test),
        )
    )
    assert before > 0.9
    assert after >= before - 0.01
    with pytest.raises(ExportError, match=r"digits\.onnx exists already"):
        export_onnx(trained.model, trained.train[:2], path, {}, form)


def test_without_onnx_the_export_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "edge.targets.onnx.emitter")
    monkeypatch.delattr(edge.targets.onnx, "emitter")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExportError, match=r"onnx is not installed; run `pip install 'fedkit\["):
        export_onnx(nn.Linear(2, 2), np.eye(2, dtype=np.float32), tmp_path / "a.onnx", {})
