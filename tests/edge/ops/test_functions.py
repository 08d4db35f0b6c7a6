"""Functions of one value: all 256 integers at many scales, in every runtime, and the way in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge.define.interpret_int8 import evaluate_int8
from edge.define.rounding import POLICIES
from edge.export import int8_graph
from edge.ops.functions import own_table, table
from edge.ops.registry import SPECS
from edge.quantize.to_int8 import quantize
from edge.targets.onnx import emitter as onnx
from edge.targets.tflite import emitter as tflite
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.interpret import evaluate
from fedkit.graph.ops.functions import FUNCTIONS, Function, values_of
from tests.edge.policy_places import PLACES, in_litert_alone
from tests.edge.single_ops import EVERY, Random, activation, graph_of
from tests.sets import slow_but

Row = tuple[str, ir.Attributes | None]
ROWS: list[Row] = [
    (each.kind, attributes) for each in FUNCTIONS for attributes in each.attributes or (None,)
]
BY_KIND = {each.kind: each for each in FUNCTIONS}
QUICK = [("sigmoid", None), ("silu", None), ("hard_swish", None), ROWS[-4]]
FIXED = {"sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0), "hard_sigmoid": (1 / 256, -128)}


def scale(random: Random) -> float:
    """Return a scale of inputs: a power of two, a fraction, or anything."""
    choices = (
        2.0 ** random.integers(-9, 1),
        random.integers(1, 200) / random.integers(1, 4000),
        np.exp(random.uniform(-8, 0)),
    )
    return float(np.float32(random.choice(choices)))


def graphs(row: Row, count: int) -> Iterator[ir.Graph]:
    """Yield graphs of a function at scales as calibration gives them, at others, and at ties."""
    kind, attributes = row
    for seed in range(count):
        random = np.random.default_rng((seed, 1))
        step, zero = scale(random), int(random.choice([-128, 127, 0, random.integers(-128, 128)]))
        op = ir.Op(kind, ("x",), ("y",), attributes=attributes)
        low, high = np.clip(
            values_of(op, step * np.array([-128.0 - zero, 0, 127 - zero])), -1e6, 1e6
        )[[0, 2]]
        low, high = min(low, high, 0.0), max(low, high, 0.0)
        fitted = max(high - low, 1e-6) / 255 * np.exp(random.uniform(-0.4, 1.2))
        out = fitted if random.random() < 0.6 else 2.0 ** np.ceil(np.log2(fitted))
        point = int(np.clip(np.rint(-128 - low / out), -128, 127))
        if random.random() < 0.2:
            point = int(random.integers(-128, 128))
        if kind in FIXED and random.random() < 0.7:
            out, point = FIXED[kind]
        shape: ir.Shape = (1, 256) if random.random() < 0.5 else (1, 4, 4, 16)
        tensors = [activation("x", shape, step, zero), activation("y", shape, out, point)]
        yield graph_of(tensors, op)


@pytest.mark.parametrize(("kind", "attributes"), slow_but(QUICK, ROWS))
def test_runtimes_give_every_integer(kind: str, attributes: ir.Attributes | None) -> None:
    check_runtimes(kind, attributes, 8 if (kind, attributes) in QUICK else 60)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "attributes"), QUICK)
def test_runtimes_give_every_integer_at_many_scales(
    kind: str, attributes: ir.Attributes | None
) -> None:
    check_runtimes(kind, attributes, 250)


def check_runtimes(kind: str, attributes: ir.Attributes | None, count: int) -> None:
    for graph in graphs((kind, attributes), count):
        codes = EVERY.reshape(graph.tensors["x"].shape)
        for name, place in PLACES.items():
            expected = evaluate_int8(graph, codes, place.policy)
            found = place.run(graph, codes).reshape(expected.shape)
            assert np.count_nonzero(found != expected) == 0, (name, graph.tensors)
        alone = evaluate_int8(graph, codes, "gemmlowp")
        assert np.count_nonzero(in_litert_alone(graph, codes) != alone) == 0, graph.tensors


@pytest.mark.parametrize(("kind", "attributes"), ROWS)
def test_no_policy_is_more_than_one_from_the_rounded_function(
    kind: str, attributes: ir.Attributes | None
) -> None:
    for graph in graphs((kind, attributes), 40):
        x, out, op = graph.tensors["x"], graph.tensors["y"], graph.ops[0]
        real = values_of(op, (EVERY.astype(np.float64) - x.zero_point) * x.scale)
        wanted = np.clip(np.floor(real / out.scale + 0.5) + out.zero_point, -128, 127)
        np.testing.assert_array_equal(own_table(graph, op), wanted)
        for policy in POLICIES.values():
            assert np.abs(table(policy, graph, op) - wanted).max() <= 1, policy.name


NATIVE = {
    "sigmoid": ["LOGISTIC"],
    "tanh": ["TANH"],
    "gelu": ["GELU"],
    "silu": ["LOGISTIC", "MUL"],
    "hard_swish": ["MUL", "ADD"],
    "mish": ["CAST", "ADD", "GATHER"],
}


@pytest.mark.parametrize("kind", NATIVE)
def test_usual_scales_get_the_fast_operators(kind: str) -> None:
    """Looking a table up takes LiteRT some 30 times as long."""
    floats = graph_floats(kind)
    graph = quantize(floats, np.linspace(-6, 6, 640, dtype=np.float32).reshape(10, 64))
    file = tflite._File(graph)
    for tensor in graph.tensors.values():
        file.tensor(tensor)
    write = SPECS[kind].tflite
    assert write is not None
    write(file, graph.ops[0])
    assert list(file.codes) == NATIVE[kind]


def graph_floats(kind: str) -> ir.Graph:
    tensors = {name: ir.Tensor(name, (1, 64)) for name in "xy"}
    attributes = (BY_KIND[kind].attributes or (None,))[0]
    return ir.Graph(tensors, (ir.Op(kind, ("x",), ("y",), attributes=attributes),), ("x",), ("y",))


def test_a_table_in_onnx_is_looked_up_for_integers_below_zero() -> None:
    graph = next(graphs(("mish", None), 1))
    content = onnx.emit(graph)
    assert b"Gather" in content
    codes = EVERY.reshape(graph.tensors["x"].shape)
    place = PLACES["onnx-qdq"]
    np.testing.assert_array_equal(place.run(graph, codes).ravel(), own_table(graph, graph.ops[0]))


@pytest.mark.parametrize("kind", FIXED)
def test_what_is_bounded_has_its_whole_range_whatever_was_seen(kind: str) -> None:
    graph = quantize(graph_floats(kind), np.full((2, 64), 0.01, np.float32))
    assert (graph.tensors["y"].scale, graph.tensors["y"].zero_point) == FIXED[kind]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda each: each.kind)
@pytest.mark.parametrize("reach", [0.0, 1e-30, 1e-6, 1e4])
def test_silent_tiny_and_huge_inputs_are_quantised(function: Function, reach: float) -> None:
    """The table then is flat or steep; nothing breaks, and all runtimes agree."""
    if function.kind == "exp" and reach > 80:
        return  # overflows float32, as the next test says
    floats = graph_floats(function.kind)
    seen = np.linspace(-reach, reach, 128, dtype=np.float32).reshape(2, 64)
    graph = quantize(floats, seen)
    codes = np.resize(EVERY, (4, 64))
    for place in PLACES.values():
        expected = evaluate_int8(graph, codes, place.policy)
        found = place.run(graph, codes).reshape(expected.shape)
        assert np.count_nonzero(found != expected) == 0


def test_an_overflow_is_named() -> None:
    with pytest.raises(Exception, match="tensor 'y' overflows float32 on the calibration set"):
        quantize(graph_floats("exp"), np.full((2, 64), 100, np.float32))


# The real function, beside torch's own

TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "exp": torch.exp,
    "log_sigmoid": F.logsigmoid,
    "mish": F.mish,
    "erf": torch.erf,
    "abs": torch.abs,
    "clip": F.hardtanh,
}


@pytest.mark.parametrize("kind", TORCH)
def test_the_real_function_is_torchs(kind: str) -> None:
    x = np.linspace(-30, 30, 64 * 50, dtype=np.float32).reshape(50, 64)
    wanted = TORCH[kind](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(evaluate(graph_floats(kind), x), wanted, rtol=2e-6, atol=2e-6)


def test_every_function_is_compared_with_torch() -> None:
    assert TORCH.keys() == BY_KIND.keys()


def test_a_target_without_an_op_refuses_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def quantise(*_: object, **__: object) -> None:
        raise AssertionError("the graph was quantised first")

    monkeypatch.setattr("edge.export.quantize", quantise)
    model = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 3), nn.Softmax(1)).eval()
    inputs = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    with pytest.raises(ExportError, match=r"fpga target has nothing for silu \(module '1'\), soft"):
        int8_graph(model, inputs, target="fpga")
