"""Group norms in integers, at sizes and ends that random examples do not reach."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge.define.interpret_int8 import evaluate_int8
from edge.export import save_c99
from edge.passes.slim import slim
from edge.quantize.to_int8 import quantize
from edge.targets.c99.runner import CompiledRunner
from edge.targets.onnx import emitter as onnx
from edge.targets.tflite import emitter as tflite
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.ops.norms import Groups, OfPlace
from tests.edge.in_runtimes import codes_of, integers_of
from tests.edge.litert_alone import evaluate_alone
from tests.edge.policy_places import PolicyRun, in_litert_alone, in_torchs_layout
from tests.edge.single_ops import Codes
from tests.edge.targets.c99.library import need_gcc
from tests.edge.targets.compiled import QUICK
from tests.sets import slow_but

LARGE = (1, 40, 40, 4)
"""Of which two groups have 3,200 values: their squares take int32."""


def norm_of(
    shape: ir.Shape, groups: int, activation: ir.Activation = "none", spread: float = 2.0
) -> ir.Graph:
    """Return an int8 graph of a norm, whose input has steps of about spread / 128."""
    return _quantised(shape, "group_norm", Groups(1e-5, groups), activation, spread)


def of_places(shape: ir.Shape, centred: bool, activation: ir.Activation = "none") -> ir.Graph:
    """Return an int8 graph of a norm over the channels of each place."""
    return _quantised(shape, "channel_norm", OfPlace(1e-5, centred), activation, 2.0)


def _quantised(
    shape: ir.Shape,
    kind: ir.Kind,
    attributes: ir.Attributes,
    activation: ir.Activation,
    spread: float,
) -> ir.Graph:
    random, channels = np.random.default_rng(0), shape[-1]
    constants = random.standard_normal((2, channels)).astype(np.float32)
    tensors = [ir.Tensor("x", shape), ir.Tensor("y", shape)]
    tensors += [ir.Tensor(f"c{n}", (channels,), data=each) for n, each in enumerate(constants)]
    op = ir.Op(kind, ("x", "c0", "c1"), ("y",), None, activation, "n", attributes)
    graph = ir.Graph({each.name: each for each in tensors}, (op,), ("x",), ("y",))
    return quantize(graph, (spread * random.standard_normal((4, *shape[1:]))).astype(np.float32))


def hard_codes(shape: ir.Shape) -> Codes:
    """Return random values, one value everywhere, both ends by turns, and one that stands out."""
    random = np.random.default_rng(1)
    codes = random.integers(-128, 128, (6, *shape[1:]))
    codes[1:4] = np.array([-128, 127, 5])[:, None, None, None]
    codes[4] = np.where(np.arange(math.prod(shape)).reshape(shape) % 2, 127, -128)
    codes[5] = -128
    codes[5, 0, 0] = 127
    return codes.astype(np.int8)


def whole_numbers(graph: ir.Graph, codes: Codes) -> ir.Array:
    """Return the result by Python's integers and fractions: the definition, not its vector form."""
    op, x, y = graph.ops[0], graph.tensors["x"], graph.tensors["y"]
    assert isinstance(op.attributes, Groups)
    groups, out = op.attributes.groups, np.zeros(codes.shape, np.float64)
    gamma, beta = (
        graph.constant(name).astype(np.float64) * graph.tensors[name].scale
        for name in op.inputs[1:]
    )
    size = x.shape[-1] // groups
    for n, example in enumerate(codes.astype(int)):
        for group in range(groups):
            part = slice(group * size, (group + 1) * size)
            values = [int(each) for each in example[..., part].ravel()]
            count, total = len(values), sum(values)
            square = sum((count * each - total) ** 2 for each in values)  # n^3 times the variance
            spread = math.sqrt(square / count**3 * x.scale**2 + op.attributes.eps)
            middle = total / count
            hat = (example[..., part] - middle) * x.scale / spread
            out[n, ..., part] = (hat * gamma[part] + beta[part]) / y.scale + y.zero_point
    return np.clip(out, -128, 127)


@pytest.mark.parametrize(("shape", "groups"), [((1, 5, 6, 6), 3), ((1, 20, 20, 3), 1)])
def test_integers_are_the_definition_rounded(shape: ir.Shape, groups: int) -> None:
    graph, codes = norm_of(shape, groups), hard_codes(shape)
    wanted = whole_numbers(graph, codes)
    for policy in ("half_up", "half_even"):
        gap = np.abs(evaluate_int8(graph, codes, policy) - wanted)
        assert gap.max() < 0.501 + 1e-4 * (policy == "half_even")


@pytest.mark.parametrize("activation", ["none", "relu6"])
def test_runtimes_sum_large_groups_exactly(activation: ir.Activation, place: PolicyRun) -> None:
    graph, codes = norm_of(LARGE, 2, activation), hard_codes(LARGE)
    expected = evaluate_int8(graph, codes, place.policy)
    found = place.run(graph, codes).reshape(expected.shape)
    assert np.count_nonzero(found != expected) == 0
    if place.policy == "gemmlowp":
        assert_same_alone(graph, codes)


def halves() -> ir.Graph:
    """Return a norm that gives every integer and a half, whatever it reads."""
    graph = norm_of((1, 3, 3, 300), 2)
    op, out = graph.ops[0], graph.tensors["y"]
    factor, offset = (graph.tensors[name] for name in op.inputs[1:])
    step = ir.Quantization((out.scale * 2.0**-10,), (0,))
    doubled = 2 * (np.arange(300) - 150) + 1
    made = [
        replace(factor, data=np.zeros(300, np.int32)),
        replace(offset, data=(doubled * 2**9).astype(np.int32), quantization=step),
    ]
    return replace(graph, tensors={**graph.tensors, **{each.name: each for each in made}})


def test_halves_become_the_integers_of_each_runtime(place: PolicyRun) -> None:
    graph, codes = halves(), hard_codes((1, 3, 3, 300))
    expected = evaluate_int8(graph, codes, place.policy)
    found = place.run(graph, codes).reshape(expected.shape)
    assert np.count_nonzero(found != expected) == 0
    if place.policy == "gemmlowp":
        assert np.count_nonzero(expected != evaluate_int8(graph, codes, "half_even")) > 0
        assert_same_alone(graph, codes)


def assert_same_alone(graph: ir.Graph, codes: Codes) -> None:
    expected = evaluate_alone(graph, codes)
    found = in_litert_alone(graph, codes).reshape(expected.shape)
    assert np.count_nonzero(found != expected) == 0


@pytest.mark.parametrize("size", slow_but([40], [40, 3]))
def test_compiled_c_is_exact_at_the_ends(size: int, tmp_path: Path) -> None:
    """With a table for each channel, and without."""
    need_gcc()
    shape = (1, size, size, 4)
    graph, codes = norm_of(shape, 2, "relu"), hard_codes(shape)
    inputs = in_torchs_layout(codes)
    saved = save_c99(graph, np.zeros(inputs.shape, np.float32), tmp_path / "model", {})
    found = ir.to_graph_layout(CompiledRunner(saved.path, QUICK).predict_int8(inputs))
    expected = evaluate_int8(graph, codes)
    assert np.count_nonzero(found.reshape(expected.shape) != expected) == 0


def test_what_32_bits_do_not_hold_is_refused_by_name() -> None:
    graph = norm_of((1, 257, 256, 2), 1)
    for emit in (tflite.emit, onnx.emit):
        with pytest.raises(ExportError, match=r"group_norm of module 'n' is over 131584 values"):
            emit(graph)
    x = replace(graph.tensors["x"], quantization=ir.Quantization((1e-9,), (0,)))
    tiny = replace(graph, tensors={**graph.tensors, "x": x})
    with pytest.raises(ExportError, match="group_norm of module 'n' adds eps"):
        evaluate_int8(tiny, np.zeros((1, 257, 256, 2), np.int8))


PLACES: list[tuple[ir.Shape, bool]] = [
    ((1, 3, 5, 6), True),
    ((1, 3, 5, 6), False),
    ((1, 1, 1, 1), True),
    ((1, 7), False),
]
WIDE: list[tuple[ir.Shape, bool]] = [((1, 1, 3, 1100), True), ((1, 1, 3, 300), False)]
"""Of so many channels the squares take int32."""


def by_fractions(graph: ir.Graph, codes: Codes) -> ir.Array:
    """Return the norm of each place by Python's integers and one root."""
    (op,), x, y = graph.ops, graph.tensors["x"], graph.tensors["y"]
    assert isinstance(op.attributes, OfPlace)
    gamma, beta = (
        graph.constant(name).astype(np.float64) * graph.tensors[name].scale
        for name in op.inputs[1:]
    )
    rows = codes.reshape(-1, codes.shape[-1]).astype(int)
    out = np.zeros(rows.shape, np.float64)
    for place, row in enumerate(rows):
        v = [int(each) - x.zero_point for each in row]
        count, total = len(v), sum(v) if op.attributes.centred else 0
        square = sum((count * each - total) ** 2 for each in v)
        spread = math.sqrt(square / count**3 * x.scale**2 + op.attributes.eps)
        hat = (np.array(v) - total / count) * x.scale / spread
        out[place] = (hat * gamma + beta) / y.scale + y.zero_point
    return np.clip(out, -128, 127).reshape(codes.shape)


def place_codes(shape: ir.Shape) -> Codes:
    """Return random values, one value everywhere, both ends by turns, and one that stands out."""
    codes = np.random.default_rng(1).integers(-128, 128, (6, *shape[1:])).reshape(6, -1)
    codes[1], codes[2], codes[3] = -128, 127, 5
    codes[4] = np.where(np.arange(codes.shape[1]) % 2, 127, -128)
    codes[5], codes[5, 0] = -128, 127
    return codes.reshape(6, *shape[1:]).astype(np.int8)


@pytest.mark.parametrize(("shape", "centred"), PLACES + WIDE)
def test_norms_of_places_are_their_definition_rounded(shape: ir.Shape, centred: bool) -> None:
    graph, codes = of_places(shape, centred), place_codes(shape)
    wanted = by_fractions(graph, codes)
    for policy in ("half_up", "half_even"):
        gap = np.abs(evaluate_int8(graph, codes, policy) - wanted)
        assert gap.max() < 0.501 + 1e-4 * (policy == "half_even")


@pytest.mark.parametrize("activation", ["none", "relu6"])
@pytest.mark.parametrize(("shape", "centred"), PLACES + WIDE)
def test_norms_of_places_in_runtimes(
    shape: ir.Shape, centred: bool, activation: ir.Activation, place: PolicyRun
) -> None:
    graph, codes = of_places(shape, centred, activation), place_codes(shape)
    expected = evaluate_int8(graph, codes, place.policy)
    found = place.run(graph, codes).reshape(expected.shape)
    assert np.count_nonzero(found != expected) == 0
    if place.policy == "gemmlowp":
        alone = in_litert_alone(graph, codes).reshape(expected.shape)
        assert np.count_nonzero(alone != expected) == 0


@pytest.mark.parametrize(
    ("shape", "centred"),
    [((1, 2, 130, 5), True), pytest.param((1, 1, 3, 300), False, marks=pytest.mark.slow)],
)
def test_compiled_norms_of_places_are_exact(shape: ir.Shape, centred: bool, tmp_path: Path) -> None:
    """Of more places in a row than the kernel takes at once."""
    need_gcc()
    graph, codes = of_places(shape, centred, "relu"), place_codes(shape)
    inputs = in_torchs_layout(codes)
    saved = save_c99(graph, np.zeros(inputs.shape, np.float32), tmp_path / "model", {})
    found = ir.to_graph_layout(CompiledRunner(saved.path, QUICK).predict_int8(inputs))
    expected = evaluate_int8(graph, codes)
    assert np.count_nonzero(found.reshape(expected.shape) != expected) == 0


def test_an_rms_norm_of_more_squares_than_32_bits_hold_is_refused_by_name() -> None:
    graph = of_places((1, 33025), False)
    for emit in (tflite.emit, onnx.emit):
        with pytest.raises(ExportError, match=r"channel_norm of module 'n' is over 33025 values"):
            emit(graph)


def test_a_group_norm_keeps_its_parameters_where_others_lose_channels() -> None:
    last = nn.Conv2d(4, 2, 1)
    with torch.no_grad():
        last.weight[:, 1] = 0
    layers = nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1), last
    model = nn.Sequential(*layers, nn.Flatten())
    graph = integers_of(model, (2, 3, 3))
    slimmed, codes = slim(graph), codes_of(graph)
    assert [slimmed.tensors[op.output].shape[-1] for op in slimmed.ops[:3]] == [4, 4, 3]
    np.testing.assert_array_equal(evaluate_int8(slimmed, codes), evaluate_int8(graph, codes))
