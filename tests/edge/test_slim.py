"""Without the channels that change nothing a graph gives the same integers, wherever it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edge import passes
from edge.cost import cost
from edge.define.interpret_int8 import Int8Array, evaluate_int8
from edge.define.rounding import POLICIES
from edge.export import float_graph, int8_graph, save_c99
from edge.ops.registry import SPECS as INTEGER_SPECS
from edge.passes.fold_constants import fold_constants
from edge.passes.probe import Values, observe
from edge.passes.slim import slim
from edge.quantize.to_int8 import quantize
from edge.targets.c99.runner import CompiledRunner
from edge.targets.onnx import emitter as onnx
from edge.targets.onnx.runner import OnnxRunner
from edge.targets.tflite import emitter as tflite
from edge.targets.tflite.runner import TfliteRunner, available_runtimes
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_torch import lower
from fedkit.graph.ops.registry import SPECS, WEIGHTED
from fedkit.graph.verify import verify
from fedkit.nn.zoo import build_model
from tests.edge.models import DenseBlock, Flat, images
from tests.edge.targets.c99.library import need_gcc
from tests.sets import slow, slow_but

Randomise = Callable[[nn.Module], nn.Module]

ZOO = {
    "resnet8": (3, 8, 8),
    "resnet18-w16": (3, 8, 8),
    "ds-cnn": (1, 28, 28),
    "mobilenetv2-w0.25": (3, 16, 16),
}


def quantised(model: nn.Module, *shape: int) -> ir.Graph:
    data = ir.to_graph_layout(images(*shape))
    return quantize(passes.optimise(lower(model.eval(), shape)), data)


def pruned(model: nn.Module, density: float, seed: int = 0) -> nn.Module:
    """Keep each weight with the same chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight *= torch.rand(layer.weight.shape, generator=generator) < density
    return model


def codes(graph: ir.Graph, n: int = 8, seed: int = 1) -> Int8Array:
    shape = graph.tensors[graph.inputs[0]].shape[1:]
    return np.random.default_rng(seed).integers(-128, 128, (n, *shape), np.int8)


def assert_same_integers(before: ir.Graph, after: ir.Graph) -> None:
    inputs = codes(before)
    for policy in POLICIES:
        expected = evaluate_int8(before, inputs, policy)
        np.testing.assert_array_equal(evaluate_int8(after, inputs, policy), expected)


def widths(graph: ir.Graph) -> list[int]:
    """Return the number of channels behind each op but the flatten that ends a model."""
    ops = (op for op in graph.ops if op.kind != "flatten_nchw")
    return [graph.tensors[op.output].shape[-1] for op in ops]


def masked(graph: ir.Graph, density: float, seed: int) -> ir.Graph:
    """Keep each integer weight with the same chance, and draw the biases anew."""
    generator = np.random.default_rng(seed)
    tensors = dict(graph.tensors)
    for op in graph.ops:
        if op.kind in WEIGHTED:
            weight, bias = (graph.tensors[name] for name in op.inputs[1:])
            kept = generator.random(weight.shape) < density
            data = (graph.constant(weight.name) * kept).astype(np.int8)
            tensors[weight.name] = replace(weight, data=data)
            offsets = graph.constant(bias.name) * generator.integers(-2, 3, bias.shape)
            tensors[bias.name] = replace(bias, data=offsets.astype(np.int32))
    return replace(graph, tensors=tensors)


def empty(layer: nn.Conv2d | nn.Linear, *outputs: int, bias: float = 0.0) -> None:
    """Let some outputs of a layer be a constant."""
    with torch.no_grad():
        layer.weight[list(outputs)] = 0
        if layer.bias is not None:
            layer.bias[list(outputs)] = bias


@pytest.mark.parametrize("name", slow_but(("resnet8", "mobilenetv2-w0.25"), ZOO))
def test_a_sparse_model_loses_channels_and_keeps_its_integers(
    name: str, randomise: Randomise
) -> None:
    model = pruned(randomise(build_model(name, ZOO[name], 10)), 0.01)
    before = quantised(model, *ZOO[name])
    after = slim(before)
    assert_same_integers(before, after)
    assert cost(after).channels < cost(before).channels
    assert cost(after).macs < cost(before).macs
    assert cost(slim(after)) == cost(after), "the first time left something"


def test_a_joined_channel_that_nobody_reads_is_removed() -> None:
    body = DenseBlock()
    empty(body.first, 1)  # its ReLU leaves 0
    with torch.no_grad():
        body.second.weight[:, 2] = 0  # an input of the block, which goes on to the output
    head = nn.Conv2d(9, 3, 1)
    with torch.no_grad():
        head.weight[:, [5, 8]] = 0  # a channel of `first`, and the last of `second`
    model = nn.Sequential(body, head, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = quantised(model, 3, 6, 6)
    after = slim(before)
    assert_same_integers(before, after)
    joined = [after.tensors[op.output].shape[-1] for op in after.ops if op.kind == "concat"]
    assert joined == [6, 7]
    first, second, *_ = (after.constant(op.inputs[1]) for op in after.ops if op.kind == "conv2d")
    assert (len(first), len(second), second.shape[-1]) == (3, 1, 6)


@pytest.mark.parametrize("name", ["resnet8", slow("ds-cnn"), slow("mobilenetv2-w0.25")])
def test_the_targets_give_the_same_integers(
    name: str, randomise: Randomise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_gcc()
    monkeypatch.setenv("CC", "gcc")
    model = pruned(randomise(build_model(name, ZOO[name], 10)), 0.5)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            empty(layer, *range(0, layer.out_channels, 2))
    before = quantised(model, *ZOO[name])
    after = slim(before)
    assert cost(after).channels < cost(before).channels
    integers = codes(before)
    torch_order = np.ascontiguousarray(np.moveaxis(integers, 3, 1))
    ours = evaluate_int8(before, integers)
    for runtime in available_runtimes():
        old, new = (TfliteRunner(tflite.emit(graph), runtime) for graph in (before, after))
        expected = old.predict_int8(torch_order)
        np.testing.assert_array_equal(new.predict_int8(torch_order), expected)
        assert len(np.unique(expected)) > 4, "the outputs say nothing"
    for form in ("qdq", "qoperator"):
        old, new = (OnnxRunner(onnx.emit(graph, form)) for graph in (before, after))  # type: ignore[assignment]
        expected = old.predict_int8(torch_order)
        np.testing.assert_array_equal(new.predict_int8(torch_order), expected)
    saved = save_c99(after, images(*ZOO[name], n=2), tmp_path / "model", {})
    compiled = CompiledRunner(saved.path, ("-O0", "-march=native"))
    np.testing.assert_array_equal(compiled.predict_int8(torch_order), ours)


@functools.cache
def mixed(padding: int) -> ir.Graph:
    torch.manual_seed(0)
    return quantised(Mixed(padding), 3, 8, 8)


@given(st.integers(0, 2**31), st.floats(0.0, 0.3), st.integers(0, 1))
@settings(max_examples=10, deadline=None)
def test_any_masks_keep_the_integers(seed: int, density: float, padding: int) -> None:
    assert_masked_is_the_same(seed, density, padding)


@pytest.mark.slow
@given(st.integers(0, 2**31), st.floats(0.0, 0.3), st.integers(0, 1))
@settings(max_examples=100, deadline=None)
def test_many_masks_keep_the_integers(seed: int, density: float, padding: int) -> None:
    assert_masked_is_the_same(seed, density, padding)


def assert_masked_is_the_same(seed: int, density: float, padding: int) -> None:
    before = masked(mixed(padding), density, seed)
    after = slim(before)
    assert_same_integers(before, after)
    assert cost(after).parameters <= cost(before).parameters


class Mixed(nn.Module):
    """All that channels can go through, and sums of branches whose scales differ."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=padding)
        self.wide = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.back = nn.Conv2d(12, 6, 1)
        self.block = nn.Conv2d(6, 6, 3, padding=1)
        self.pools = nn.Sequential(
            nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2), nn.ZeroPad2d((0, 1, 1, 0))
        )
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 4 * 4 if padding == 0 else 6 * 5 * 5, 8)
        self.head = nn.Linear(8, 5)
        nn.init.normal_(self.block.weight, 0, 5.0)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.back(torch.nn.functional.relu6(self.wide(x)))
        x = torch.relu(self.norm(x + self.block(x)) + x)
        out: Tensor = self.head(torch.relu(self.fc(self.pools(x).flatten(1))))
        return out


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.head(x + self.branch(x)).flatten(1)
        return out


def test_operands_and_result_of_a_sum_lose_a_channel_together() -> None:
    model = Residual()
    nn.init.normal_(model.branch.weight, 0, 5.0)
    empty(model.stem, 1, 2)
    empty(model.branch, 2, 3)
    before = quantised(model, 3, 6, 6)
    after = slim(before)
    assert widths(after) == [3, 3, 3, 2], "channel 2 alone is empty in both"
    assert_same_integers(before, after)


def test_a_block_that_feeds_only_itself_is_removed() -> None:
    model = Residual()
    with torch.no_grad():
        model.head.weight[:, 3] = 0
        model.branch.weight[:3, 3] = 0
    after = slim(quantised(model, 3, 6, 6))
    assert widths(after) == [3, 3, 3, 2]


@pytest.mark.parametrize(("padding", "left"), [(0, 3), (1, 4)])
def test_a_constant_joins_the_biases_of_readers_that_do_not_pad(padding: int, left: int) -> None:
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3, padding=padding)
    empty(first, 1, bias=0.8)
    before = quantised(Flat(nn.Sequential(first, nn.ReLU(), second)), 3, 8, 8)
    after = slim(before)
    assert widths(after) == [left, 2]
    assert_same_integers(before, after)


def test_a_constant_that_a_relu_cuts_off_is_removed_where_readers_pad() -> None:
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3, padding=1)
    empty(first, 0, 2, bias=-0.8)
    before = quantised(Flat(nn.Sequential(first, nn.ReLU(), second)), 3, 8, 8)
    after = slim(before)
    assert widths(after) == [2, 2]
    assert_same_integers(before, after)


def test_a_constant_on_which_policies_differ_stays() -> None:
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    empty(first, 1, bias=0.5)
    before = quantised(nn.Sequential(first, second), 3)
    name, out = before.ops[0].inputs[2], before.tensors[before.ops[0].output]
    bias = before.tensors[name]
    assert bias.quantization is not None
    left = set()
    # Sums close to a half of a step, which some policies round up and others to even.
    for steps in range(-40, 40):
        data = before.constant(name).copy()
        data[1] = round((steps + 0.5) * out.scale / bias.quantization.scale[1])
        graph = replace(before, tensors={**before.tensors, name: replace(bias, data=data)})
        seen = {int(values[out.name][0, 1]) for values in observe(graph).values()}
        after = slim(graph)
        assert widths(after) == [4 if len(seen) > 1 else 3, 2]
        assert_same_integers(graph, after)
        left.add(len(seen))
    assert left == {1, 2}, "the policies never differed"


def test_a_flattened_channel_takes_its_columns_along() -> None:
    conv, fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 5)
    empty(conv, 0, 3)
    before = quantised(nn.Sequential(conv, nn.Flatten(), fc), 3, 8, 8)
    after = slim(before)
    assert widths(after) == [2, 2 * 36, 5]
    assert_same_integers(before, after)


@pytest.mark.parametrize("unread", [0, 2])
def test_a_flattened_channel_stays_as_long_as_one_place_is_read(unread: int) -> None:
    conv, fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 5)
    with torch.no_grad():
        columns = fc.weight.view(5, 4, 36)
        columns[:, unread] = 0
        columns[:, 1, 1:] = 0
    before = quantised(nn.Sequential(conv, nn.Flatten(), fc), 3, 8, 8)
    after = slim(before)
    assert widths(after) == [3, 3 * 36, 5]
    assert_same_integers(before, after)


def test_a_depthwise_layer_that_widens_loses_all_of_a_channel_or_nothing() -> None:
    wide, head = nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1)
    with torch.no_grad():
        head.weight[:, [0, 1, 2]] = 0
    model = Flat(nn.Sequential(nn.Conv2d(3, 4, 1), wide, head))
    before = quantised(model, 3, 6, 6)
    after = slim(before)
    assert widths(after) == [3, 6, 2], "output 2 shares its input with output 3"
    assert_same_integers(before, after)


def test_inputs_and_outputs_stay() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    empty(conv, 0, 1)
    with torch.no_grad():
        conv.weight[:, 2] = 0
    before = quantised(Flat(conv), 3, 6, 6)
    after = slim(before)
    for name in (*before.inputs, *before.outputs):
        assert after.tensors[name].shape == before.tensors[name].shape
    assert widths(after) == [4]
    assert_same_integers(before, after)


def test_a_layer_without_weights_keeps_one_channel() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 4),
    )
    empty(model[2], *range(8), bias=0.3)  # type: ignore[arg-type]
    before = quantised(model, 3, 8, 8)
    after = slim(before)
    assert widths(after) == [1, 1, 16, 4]
    assert cost(after).kept_weights == 0
    assert_same_integers(before, after)


@pytest.mark.parametrize("name", ["resnet8", "ds-cnn"])
def test_where_all_is_dead_a_skeleton_is_left(name: str, randomise: Randomise) -> None:
    model = randomise(build_model(name, ZOO[name], 10))
    before = quantised(pruned(model, 0.0), *ZOO[name])
    after = slim(before)
    assert set(widths(after)[:-1]) == {1}
    assert_same_integers(before, after)


def test_a_dense_model_is_left_alone(randomise: Randomise) -> None:
    graph = quantised(randomise(build_model("resnet8", (3, 8, 8), 10)), 3, 8, 8)
    assert slim(graph) is graph


def test_an_export_is_slim() -> None:
    first = nn.Conv2d(3, 4, 3)
    empty(first, 1)
    graph = int8_graph(Flat(nn.Sequential(first, nn.Conv2d(4, 2, 3))).eval(), images(3, 8, 8))
    assert widths(graph) == [3, 2]


def test_shared_constants_are_cut_for_each_op() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1))
    before = quantised(Flat(model), 3, 4, 4)
    first, second, *rest = before.ops
    x, y = (before.tensors[op.output] for op in (first, second))
    quantization = before.tensors[before.inputs[0]].quantization
    data = before.constant(first.inputs[1]).copy()
    data[:, :, :, 2] = 0
    tensors = {
        **before.tensors,
        x.name: replace(x, quantization=quantization),
        first.inputs[1]: replace(before.tensors[first.inputs[1]], data=data),
    }
    shared = replace(
        before,
        tensors=tensors,
        ops=(first, replace(second, inputs=(x.name, *first.inputs[1:])), *rest),
    )
    verify(shared)
    after = slim(shared)
    assert widths(after) == [2, 3, 2]
    assert_same_integers(shared, after)
    assert y.name in after.tensors


def test_a_fault_of_the_pass_is_an_error_that_names_the_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Residual()
    empty(model.stem, 1)
    empty(model.branch, 1)
    graph = quantised(model, 3, 6, 6)

    def disturb(graph: ir.Graph, seen: Values) -> ir.Graph:
        folded = fold_constants(graph, seen)
        name = folded.ops[1].inputs[2]
        bias = replace(folded.tensors[name], data=folded.constant(name) + np.int32(2**20))
        return replace(folded, tensors={**folded.tensors, name: bias})

    monkeypatch.setattr("edge.passes.slim.fold_constants", disturb)
    with pytest.raises(ExportError, match=f"changed tensor {graph.ops[1].output!r}.*report it"):
        slim(graph)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU, nn.ReLU6])
def test_norms_of_groups_keep_their_constants_where_others_lose_channels(
    groups: int, activation: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    norm, reads, last = nn.GroupNorm(groups, 4), nn.Conv2d(6, 4, 1), nn.Conv2d(5, 2, 1)
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.ReLU(), reads, norm, activation()),
        *(nn.Conv2d(4, 5, 3), nn.ReLU(), last, nn.Flatten()),
    )
    with torch.no_grad():
        for value in norm.parameters():
            value.normal_()
        reads.weight[:, [1, 4]] = 0
        last.weight[:, [0, 3]] = 0
    x = np.random.default_rng(0).standard_normal((8, 1, 7, 7)).astype(np.float32)
    graph = quantize(float_graph(model.eval(), (1, 7, 7)), ir.to_graph_layout(x))
    slimmed = slim(graph)
    assert_same_integers(graph, slimmed)
    assert widths(slimmed)[:3] == [4, 4, 4] and widths(slimmed)[3] == 3


def test_every_kind_says_what_becomes_of_its_channels() -> None:
    of_training = {kind for kind, spec in SPECS.items() if spec.only_trains}
    assert set(INTEGER_SPECS) == set(SPECS) - of_training - {"affine", "sum_pool2d"}
