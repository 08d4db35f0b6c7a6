"""Products, sums and differences of two: every pair of integers, every way of broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge.api import check_artifact, export_model
from edge.define.interpret_int8 import evaluate_int8
from edge.export import float_graph, int8_graph, save_c99
from edge.graph_file import load_graph
from edge.quantize.to_int8 import quantize
from edge.quantize.truth import quantized
from edge.targets.c99.calls import compile_graph as c_calls
from edge.targets.c99.runner import CompiledRunner
from edge.targets.fpga.microcode import compile_graph as fpga_steps
from fedkit.core.errors import ExportError
from fedkit.graph import integers, ir
from tests.edge.policy_places import PLACES, in_litert_alone, in_torchs_layout
from tests.edge.single_ops import Random, sum_of_pairs
from tests.edge.targets.c99.library import need_gcc
from tests.edge.targets.compiled import PLAIN, QUICK
from tests.sets import slow_but


def scale(random: Random) -> float:
    choices = (2.0 ** random.integers(-9, 1), np.exp(random.uniform(-7, 0)))
    return float(np.float32(random.choice(choices)))


@pytest.mark.parametrize("seed", slow_but(range(4), range(80)))
@pytest.mark.parametrize("kind", ["mul", "sub"])
def test_runtimes_give_every_pair(kind: str, seed: int) -> None:
    random = np.random.default_rng((seed, 2))
    left, right = scale(random), scale(random)
    least = left * right * 2.001 if kind == "mul" else max(left, right) / 100
    usual = left * right * 255 if kind == "mul" else left + right
    out = max(least, float(random.choice([usual, least, 2.0 ** np.ceil(np.log2(usual))])))
    out *= float(random.choice([1.0, np.exp(random.uniform(0, 2)), 2.0**12]))
    points = [int(random.choice([-128, 0, 127, random.integers(-128, 128)])) for _ in range(3)]
    graph, codes = sum_of_pairs((left, right, out), points, kind=kind)
    for name, place in PLACES.items():
        expected = evaluate_int8(graph, codes, place.policy)
        found = place.run(graph, codes).reshape(expected.shape)
        assert np.count_nonzero(found != expected) == 0, (name, graph.tensors)
    expected = evaluate_int8(graph, codes, "gemmlowp")
    assert np.count_nonzero(in_litert_alone(graph, codes) != expected) == 0
    real = evaluate_int8(graph, codes)
    for policy in ("gemmlowp", "half_even", "onnxruntime"):
        gap = real.astype(int) - evaluate_int8(graph, codes, policy)
        assert np.abs(gap).max() <= 1


def test_steps_finer_than_those_of_products_are_refused() -> None:
    least = 0.1 * 0.1 / integers.LARGEST_OF_PRODUCTS
    sum_of_pairs((0.1, 0.1, least * 1.001), (0, 0, 0), kind="mul")  # verified
    with pytest.raises(ExportError, match="output scale of twice its inputs' product"):
        sum_of_pairs((0.1, 0.1, least * 0.999), (0, 0, 0), kind="mul")


# Models


class TwoConvs(nn.Module):
    """A function between two convolutions, which need a halo."""

    def __init__(self, function: Callable[[Tensor], Tensor] | nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.function, self.head = function, nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.function(self.first(x)))
        made: Tensor = self.head(y.mean((2, 3)))
        return made


class Gate(nn.Module):
    """Squeeze and excite, by a vector that becomes a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.norm(torch.relu(self.squeeze(x.mean((2, 3)))) * 3)
        return torch.sigmoid(gate).view(-1, 4, 1, 1) * x


def uneven() -> nn.PReLU:
    made = nn.PReLU(4)
    with torch.no_grad():
        made.weight[:] = torch.tensor([0.1, 0.2, -0.3, 1.0])
    return made


def over_map(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, 64).view(8, 8) * x


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gate": lambda: TwoConvs(Gate()),
    "gate before": lambda: TwoConvs(lambda x: torch.sigmoid(x.mean((2, 3), keepdim=True)) * x),
    "of pixels": lambda: TwoConvs(nn.Sequential(Mask())),
    "map of constants": lambda: TwoConvs(over_map),
    "constants less": lambda: TwoConvs(lambda x: torch.linspace(0, 1, 256).view(4, 8, 8) - x),
    "sum with constants": lambda: TwoConvs(lambda x: x + torch.linspace(0, 1, 64).view(8, 8)),
    "sum with means": lambda: TwoConvs(lambda x: x + x.mean((2, 3), keepdim=True)),
    "less means": lambda: TwoConvs(lambda x: x.mean((2, 3), keepdim=True) - x),
    "square": lambda: TwoConvs(lambda x: x * x),
    "slopes": lambda: TwoConvs(uneven()),
    "two readers": lambda: TwoConvs(two_readers),
    "concat": lambda: TwoConvs(Joined()),
}


class Mask(nn.Module):
    """A factor for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.mask(x)) * x


class Joined(nn.Module):
    """A sigmoid that has the scale of what it is joined with."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.mix(torch.cat([torch.sigmoid(x), torch.relu(x)], 1))
        return made


def two_readers(x: Tensor) -> Tensor:
    y = nn.functional.silu(x)
    return y * torch.sigmoid(torch.tanh(y)) + nn.functional.gelu(y)


IN_C = ["gate", "two readers"]


def graph_and_codes(name: str) -> tuple[ir.Graph, ir.Array]:
    torch.manual_seed(1)
    random = np.random.default_rng(0)
    inputs = random.standard_normal((16, 3, 8, 8)).astype(np.float32)
    graph = int8_graph(MODELS[name]().eval(), inputs, accept_error=True)
    extremes = random.integers(-128, 128, (4, 8, 8, 3)).astype(np.int8)
    return graph, np.concatenate([quantized(graph, ir.to_graph_layout(inputs[:4])), extremes])


@pytest.mark.parametrize("name", slow_but(["gate", "constants less", "two readers"], MODELS))
def test_runtimes_give_every_layer_of_models(name: str) -> None:
    graph, codes = graph_and_codes(name)
    for op in graph.ops:
        part = ir.until(graph, op.output)
        for place in PLACES.values():
            expected = evaluate_int8(part, codes, place.policy)
            found = place.run(part, codes).reshape(expected.shape)
            assert np.count_nonzero(found != expected) == 0, op


@pytest.mark.parametrize("name", slow_but(IN_C, MODELS))
def test_compiled_c_gives_the_integers_of_models(name: str, tmp_path: Path) -> None:
    need_gcc()
    graph, codes = graph_and_codes(name)
    inputs = in_torchs_layout(codes)
    for goal, flags in (("speed", QUICK), ("size", PLAIN)):
        path = save_c99(graph, np.zeros(inputs.shape, np.float32), tmp_path / goal, {}, goal).path  # type: ignore[arg-type]
        found = ir.to_graph_layout(CompiledRunner(path, flags).predict_int8(inputs))
        assert np.count_nonzero(found != evaluate_int8(graph, codes)) == 0


CALLS = {
    "two readers": ["ek_conv_dense", "ek_look_up", "ek_conv_dense"],
    "square": ["ek_conv_dense", "ek_look_up", "ek_conv_dense"],
    "gate before": ["ek_conv_dense", "ek_mean", "ek_look_up", "ek_mul", "ek_conv_dense"],
    "map of constants": ["ek_conv_dense", "ek_mul", "ek_conv_dense"],
}


@pytest.mark.parametrize("name", CALLS)
def test_in_c_a_chain_of_one_value_is_one_table(name: str) -> None:
    calls = [call.function for call in c_calls(graph_and_codes(name)[0]).calls]
    assert calls == ["ek_load", *CALLS[name], "ek_mean", "ek_linear", "ek_store"]


@pytest.mark.slow
def test_what_is_read_between_is_no_part_of_a_chain(tmp_path: Path) -> None:
    need_gcc()

    def read_twice(x: Tensor) -> Tensor:
        bent = torch.tanh(nn.functional.elu(x))
        return torch.cat([bent, torch.sigmoid(bent)], 1)

    inputs = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
    model = TwoConvs(read_twice)
    model.last = nn.Conv2d(8, 4, 3, padding=1)
    path = tmp_path / "model-c99"
    export_model(model.eval(), inputs, path, accept_error=True)
    found = check_artifact(path, inputs, layers=True)
    assert found.mismatches == 0 and found.layers
    calls = [call.function for call in c_calls(load_graph(tmp_path / "model-c99.graph")).calls]
    assert calls.count("ek_look_up") == 2


def test_the_fpga_refuses_products_and_broadcast_sums_by_name() -> None:
    for name, part in (("gate", "mul"), ("sum with means", "takes two activations of one shape")):
        with pytest.raises(ExportError, match=part):
            fpga_steps(graph_and_codes(name)[0], 4)


REFUSED: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda x: x * torch.cumsum(x, 1), "cumsum"),
    (lambda x: 1 / (x + 3), "reciprocal"),
    (lambda x: x / 0, "a division by zero"),
    (lambda x: x**3, "a power of 3; 2 can be"),
    (lambda x: x.mean((2, 3), keepdim=True) + torch.ones(8, 8), "which widens"),
]


@pytest.mark.parametrize(("function", "message"), REFUSED)
def test_what_cannot_be_is_refused_by_name(
    function: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        float_graph(TwoConvs(function).eval(), (3, 8, 8))


def test_identities_of_arithmetic_are_no_ops() -> None:
    model = TwoConvs(lambda x: sum([x * 1, x.relu() / 1]) - 0)  # type: ignore[arg-type, return-value]
    inputs = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
    kinds = [op.kind for op in int8_graph(model.eval(), inputs, accept_error=True).ops]
    assert kinds == ["conv2d", "relu", "add", "conv2d", "mean", "linear"]


def test_a_normalised_input_is_one_op() -> None:
    model = TwoConvs(nn.Identity())
    whole = nn.Sequential(Normalised(), model).eval()
    inputs = np.random.default_rng(0).random((8, 3, 8, 8)).astype(np.float32)
    kinds = [op.kind for op in int8_graph(whole, inputs, accept_error=True).ops]
    assert kinds == ["depthwise_conv2d", "conv2d", "conv2d", "mean", "linear"]


class Normalised(nn.Module):
    """Inputs less their mean, by their deviation."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / 0.25


def test_products_of_silence_are_zero() -> None:
    """Both operands are always 0 in calibration."""
    shape = (1, 4)
    tensors = {name: ir.Tensor(name, shape) for name in ("x", "r", "y")}
    ops = (ir.Op("relu", ("x",), ("r",)), ir.Op("mul", ("x", "r"), ("y",)))
    graph = quantize(ir.Graph(tensors, ops, ("x",), ("y",)), np.zeros((2, 4), np.float32))
    codes = np.resize(np.arange(-128, 128), (64, 4)).astype(np.int8)
    for place in PLACES.values():
        expected = evaluate_int8(graph, codes, place.policy)
        assert np.count_nonzero(place.run(graph, codes) != expected) == 0
