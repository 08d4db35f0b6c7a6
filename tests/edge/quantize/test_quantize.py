"""Scales and zero points, and the values that break careless ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from edge.define.interpret_int8 import evaluate_int8
from edge.export import float_graph
from edge.passes import optimise
from edge.quantize.fit import MOST_TERMS
from edge.quantize.to_int8 import quantize
from edge.targets.tflite import emitter as tflite
from edge.targets.tflite.runner import TfliteRunner, available_runtimes
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import evaluate
from fedkit.graph.ops.registry import SPECS
from fedkit.graph.verify import verify
from tests.edge.conftest import TrainedModel
from tests.edge.models import Branches, Flat, images
from tests.sets import slow

Build = Callable[..., ir.Graph]
Floats = NDArray[np.float32]


def features(n: int = 64, f: int = 3, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, f)).astype(np.float32)


def assert_close_in_every_runtime(graph: ir.Graph, inputs: Floats, calibration: Floats) -> None:
    """Allow what rounding the inputs, weights and output to 8 bits explains."""
    quantised = quantize(graph, calibration)
    expected = evaluate(graph, inputs)
    x, y = quantised.tensors["x"], quantised.tensors["y"]
    weight = np.abs(graph.constant("w")).sum(axis=1).max()
    steps = np.abs(graph.constant("w")).max(axis=1).max() / 127
    allowed = y.scale + x.scale * weight + steps * np.abs(inputs).sum(axis=1).max()
    for runtime in available_runtimes():
        found = TfliteRunner(tflite.emit(quantised), runtime).predict(inputs)
        assert np.abs(found - expected).max() <= allowed


def test_scales_follow_the_specification(linear_graph: Build) -> None:
    weight = np.array([[1.0, -2.54, 0.5], [0.1, 0.0, 0.127]])
    calibration = np.array([[0, 0, 0], [2.0, 1.0, -0.55]], np.float32)
    graph = quantize(linear_graph(weight, np.array([1.0, -1.0])), calibration)
    x, w, b = (graph.tensors[name] for name in graph.ops[0].inputs)
    assert (x.scale, x.zero_point) == pytest.approx((2.55 / 255, -73))
    assert w.quantization is not None and w.quantization.axis == 0
    assert w.quantization.scale == pytest.approx((0.02, 0.001))
    assert w.data is not None and w.data.tolist() == [[50, -127, 25], [100, 0, 127]]
    assert b.data is not None and b.data.tolist() == [5000, -100000]
    y = graph.tensors["y"]
    assert (y.scale, y.zero_point) == pytest.approx((2 / 255, -1))


def test_zero_is_exact_even_if_calibration_never_shows_it(linear_graph: Build) -> None:
    graph = quantize(linear_graph(np.ones((1, 3)), np.zeros(1)), np.full((2, 3), 5, np.float32))
    x = graph.tensors["x"]
    assert (x.scale, x.zero_point) == pytest.approx((5 / 255, -128))


def test_int8_is_close_to_float(linear_graph: Build) -> None:
    weight, bias = features(4, 3, seed=1), features(1, 4, seed=2)[0]
    assert_close_in_every_runtime(linear_graph(weight, bias), features(), features())


def test_a_pruned_channel_still_carries_its_bias(linear_graph: Build) -> None:
    weight, bias = features(4, 3, seed=1), np.array([0.3, -2.0, 0.7, 0.0])
    weight[1:] = 0
    graph = linear_graph(weight, bias)
    quantised = quantize(graph, features())
    found = TfliteRunner(tflite.emit(quantised)).predict(features())
    step = quantised.tensors["y"].scale
    assert np.abs(found[:, 1:] - bias[1:]).max() <= step / 2 * 1.001


def test_a_model_pruned_to_nothing_returns_its_bias(linear_graph: Build) -> None:
    graph = linear_graph(np.zeros((2, 3)), np.array([0.0, 0.0]))
    assert_close_in_every_runtime(graph, features(), features())


def test_an_all_zero_calibration_set_gives_a_model_right_at_zero(linear_graph: Build) -> None:
    zeros = np.zeros((5, 3), np.float32)
    for bias in (np.array([1.5, -0.5]), np.zeros(2)):
        graph = linear_graph(features(2, 3), bias)
        assert_close_in_every_runtime(graph, zeros, zeros)


@settings(max_examples=30, deadline=None)
@given(
    weight_size=st.integers(-12, 12),
    bias_size=st.integers(-12, 12),
    input_size=st.integers(-12, 12),
    tiny_channel=st.integers(-12, 0),
)
def test_no_combination_of_sizes_breaks_a_runtime(
    weight_size: int, bias_size: int, input_size: int, tiny_channel: int, linear_graph: Build
) -> None:
    weight = features(3, 3, seed=1) * 10.0**weight_size
    weight[1] *= 10.0**tiny_channel
    bias = features(1, 3, seed=2)[0] * 10.0**bias_size
    inputs = features() * np.float32(10.0**input_size)
    assert_close_in_every_runtime(linear_graph(weight, bias), inputs, inputs)


def test_an_output_that_cancels_has_no_finer_steps_than_its_sums(linear_graph: Build) -> None:
    inputs = np.full((4, 2), 1.0, np.float32)
    graph = quantize(linear_graph(np.array([[1.0, -1.0]]), np.zeros(1)), inputs)
    accumulator = graph.tensors["x"].scale / 127
    assert graph.tensors["y"].scale > accumulator


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), positive=st.floats(0, 2))
def test_a_mean_has_a_whole_offset_and_hardly_a_wider_scale(seed: int, positive: float) -> None:
    tensors = {"x": ir.Tensor("x", (1, 5, 5, 2)), "y": ir.Tensor("y", (1, 2))}
    graph = ir.Graph(tensors, (ir.Op("mean", ("x",), ("y",)),), ("x",), ("y",))
    inputs = np.random.default_rng(seed).uniform(-1, positive, (8, 5, 5, 2)).astype(np.float32)
    quantised = quantize(graph, inputs)
    x, y = quantised.tensors["x"], quantised.tensors["y"]
    offset = abs(x.zero_point) * x.scale / y.scale
    assert offset < 32 or offset % 1 == pytest.approx(2**-10, rel=0.1)
    means = np.append(evaluate(graph, inputs), 0)
    assert y.scale <= np.ptp(means) / 255 * (1 + 1 / 32) * 1.001


def test_all_that_concats_join_has_one_scale() -> None:
    graph = float_graph(Flat(Branches()).eval(), (3, 6, 6))
    inputs = ir.to_graph_layout(images(3, 6, 6))
    made = quantize(graph, inputs)
    joined = {name for op in made.ops if op.kind == "concat" for name in (*op.inputs, op.output)}
    assert len(joined) > 5 and len({made.tensors[name].quantization for name in joined}) == 1
    (one,) = {made.tensors[name].scale for name in joined}
    ranges = [evaluate(ir.until(graph, name), inputs) for name in joined]
    span = max(float(each.max()) for each in ranges) - min(float(each.min()) for each in ranges)
    assert one == pytest.approx(span / 255, rel=1e-3)


def test_what_an_op_reads_symmetrically_has_the_zero_point_0(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    floats = float_graph(nn.Sequential(*body, nn.Linear(4, 3)).eval(), (3, 8, 8))
    inputs = ir.to_graph_layout(images(3, 8, 8))
    before = quantize(floats, inputs)
    mean = next(op for op in floats.ops if op.kind == "mean")
    monkeypatch.setitem(SPECS, "mean", replace(SPECS["mean"], symmetric=(0,)))
    with pytest.raises(ExportError, match=f"must read '{mean.inputs[0]}' with the zero point 0"):
        verify(before)
    made = quantize(floats, inputs)
    conv, pool = floats.ops[0].output, mean.inputs[0]
    points = {
        name for name, each in made.tensors.items() if each.data is None and not each.zero_point
    }
    assert points >= {conv, pool} and floats.inputs[0] not in points
    most = evaluate(ir.until(floats, conv), inputs).max()
    assert made.tensors[pool].scale == pytest.approx(most / 127, rel=1e-5)
    real = made.tensors[made.inputs[0]]
    codes = np.clip(np.rint(inputs / real.scale) + real.zero_point, -128, 127).astype(np.int8)
    out = made.tensors[made.outputs[0]]
    found = (evaluate_int8(made, codes).astype(int) - out.zero_point) * out.scale
    assert np.abs(found - evaluate(floats, inputs)).max() < 4 * out.scale


def test_a_part_with_large_steps_widens_all_that_is_joined() -> None:
    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2, bias=False)
            self.layer.weight.data = torch.tensor([[1.0, -1.0], [0.5, -0.5]])

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return torch.cat([y, torch.relu(y)], 1)

    inputs = np.repeat(features(f=1), 2, axis=1)
    made = quantize(float_graph(Cancelling(), (2,)), inputs)
    assert len({made.tensors[op.output].quantization for op in made.ops}) == 1
    assert made.tensors[made.outputs[0]].scale > made.tensors[made.inputs[0]].scale / 127


def test_a_percentile_cuts_outliers(linear_graph: Build) -> None:
    inputs = features(200)
    inputs[0] = 1000
    graph = linear_graph(np.ones((1, 3)), np.zeros(1))
    widest, cut = (quantize(graph, inputs, p).tensors["x"].scale for p in (100, 95))
    assert widest == pytest.approx(1000 / 255, rel=0.01)
    assert cut < 1.0


@pytest.mark.parametrize("percentile", [0.0, 50.0, 100.1, float("nan")])
def test_a_percentile_out_of_range_is_refused(linear_graph: Build, percentile: float) -> None:
    with pytest.raises(ExportError, match="must be above 50"):
        quantize(linear_graph(np.ones((1, 3)), np.zeros(1)), features(), percentile)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(linear_graph: Build, bad: float) -> None:
    calibration = features()
    calibration[3, 1] = bad
    with pytest.raises(ExportError, match="1 NaN or infinite value"):
        quantize(linear_graph(np.ones((1, 3)), np.zeros(1)), calibration)
    with pytest.raises(ExportError, match="'b' holds NaN or infinity"):
        quantize(linear_graph(np.ones((1, 3)), np.array([bad])), features())


def test_values_that_overflow_float32_are_refused(linear_graph: Build) -> None:
    graph = linear_graph(np.full((1, 3), 1e30), np.zeros(1))
    with pytest.raises(ExportError, match="'y' overflows float32"), np.errstate(over="ignore"):
        quantize(graph, np.full((1, 3), 1e30, np.float32))


def test_an_empty_calibration_set_is_refused(linear_graph: Build) -> None:
    with pytest.raises(ExportError, match="calibration set is empty"):
        quantize(linear_graph(np.ones((1, 3)), np.zeros(1)), features(0))


def test_a_layer_that_could_overflow_its_accumulator_is_refused(linear_graph: Build) -> None:
    graph = linear_graph(np.ones((1, 70_000)), np.zeros(1))
    with pytest.raises(ExportError, match=r"layer 'fc' sums up to \d+ in an accumulator"):
        quantize(graph, np.ones((1, 70_000), np.float32))


# Fewer bits


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (6, 31), (4, 7)])
def test_weights_of_few_bits_lose_least(linear_graph: Build, bits: int, most: int) -> None:
    weight = np.random.default_rng(0).standard_t(4, (5, 300))
    graph = quantize(linear_graph(weight, np.zeros(5)), features(f=300), weight_bits=bits)
    w = graph.tensors[graph.ops[0].inputs[1]]
    assert w.data is not None and w.quantization is not None
    largest = np.abs(w.data).max(axis=1)
    assert largest.max() == most and largest.min() >= most - (bits < 8)
    assert w.data.dtype == np.int8

    def squares(scale: NDArray[np.float64]) -> NDArray[np.float64]:
        codes = np.clip(np.rint(weight / scale[:, None]), -most, most)
        return np.asarray(np.square(codes * scale[:, None] - weight).sum(axis=1))

    widest = np.abs(weight).max(axis=1) / most
    assert (squares(np.asarray(w.quantization.scale)) <= squares(widest) * (1 + 1e-6)).all()
    if bits == 4:
        assert (squares(np.asarray(w.quantization.scale)) < 0.8 * squares(widest)).all()


def _output(graph: ir.Graph, inputs: Floats) -> NDArray[np.float64]:
    x, y = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    codes = np.clip(np.rint(inputs / np.float32(x.scale)) + x.zero_point, -128, 127)
    integers = evaluate_int8(graph, codes.astype(np.int8)).astype(np.float64)
    return np.asarray((integers - y.zero_point) * y.scale)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_channel_that_is_hardly_fed_does_not_spoil_the_others(
    linear_graph: Build, bits: int
) -> None:
    """One feature varies by less than a step of the input; a BatchNorm made up for that."""
    inputs = features(512, 16) * np.array([1] * 15 + [1e-4], np.float32)
    weight = np.random.default_rng(1).normal(0, 0.25, (8, 16))
    weight[:, 15] = 0
    weight[7] = 0
    weight[7, 15] = 1e4
    graph = linear_graph(weight, np.zeros(8))
    expected = evaluate(graph, inputs)
    gap = (_output(quantize(graph, inputs, weight_bits=bits), inputs) - expected)[:, :7]
    allowed = {8: 0.02, 4: 0.15}[bits]
    assert np.sqrt(np.mean(np.square(gap))) < allowed * np.sqrt(np.mean(np.square(expected)))


def test_weights_of_few_bits_keep_the_means_of_outputs(linear_graph: Build) -> None:
    inputs = features(512, 64) + 1
    weight = np.random.default_rng(2).standard_normal((16, 64))
    graph = linear_graph(weight, np.zeros(16))
    made = quantize(graph, inputs, weight_bits=4)
    gap = np.abs((_output(made, inputs) - evaluate(graph, inputs)).mean(axis=0))
    assert gap.max() < made.tensors[made.outputs[0]].scale


def test_a_layer_too_wide_for_moments_is_rounded_to_the_nearest(linear_graph: Build) -> None:
    weight = np.random.default_rng(0).standard_normal((2, MOST_TERMS + 1))
    graph = linear_graph(weight, np.zeros(2))
    w = quantize(graph, features(8, MOST_TERMS + 1), weight_bits=4).tensors["y.weight_int8"]
    assert w.data is not None and w.quantization is not None
    codes = weight.astype(np.float32) / np.reshape(w.quantization.scale, (2, 1))
    assert (w.data == np.clip(np.rint(codes), -7, 7)).all()


def test_a_constant_that_a_norm_blew_up_costs_nothing(linear_graph: Build) -> None:
    """What pruning leaves: a channel that is its bias, and a layer that takes it off, times 100."""
    inputs = features(512, 4)
    rng = np.random.default_rng(3)
    first = rng.standard_normal((4, 4))
    first[3] = 0
    second = rng.standard_normal((4, 4))
    second[:, 3] = 100
    graph = linear_graph(first, np.array([0, 0, 0, 0.8976]))
    tensors = dict(graph.tensors)
    for name, value in (("w2", second), ("b2", np.full(4, -89.76))):
        tensors[name] = ir.Tensor(name, value.shape, "float32", value.astype(np.float32))
    tensors["z"] = ir.Tensor("z", (1, 4))
    op = ir.Op("linear", ("y", "w2", "b2"), ("z",), source="second")
    graph = ir.Graph(tensors, (*graph.ops, op), graph.inputs, ("z",))
    gap = _output(quantize(graph, inputs), inputs) - evaluate(graph, inputs)
    assert np.abs(gap.mean(axis=0)).max() < 0.1


@pytest.mark.parametrize(("bits", "most"), [(8, 0.003), slow((6, 0.003)), (4, 0.01)])
def test_a_trained_model_keeps_its_accuracy(trained: TrainedModel, bits: int, most: float) -> None:
    graph = optimise(lower(trained.model, trained.test.shape[1:]))
    inputs = ir.to_graph_layout(trained.test)
    quantised = quantize(graph, ir.to_graph_layout(trained.train[:200]), weight_bits=bits)
    x = quantised.tensors[quantised.inputs[0]]
    codes = np.clip(np.rint(inputs / np.float32(x.scale)) + x.zero_point, -128, 127)
    real, found = (
        float((logits.argmax(1) == trained.targets).mean())
        for logits in (evaluate(graph, inputs), evaluate_int8(quantised, codes.astype(np.int8)))
    )
    assert real > 0.9 and found >= real - most - 1e-9, (real, found)


def test_other_bits_are_refused(linear_graph: Build) -> None:
    with pytest.raises(ExportError, match="weight_bits is 5"):
        quantize(linear_graph(np.ones((1, 3)), np.zeros(1)), features(), weight_bits=5)
