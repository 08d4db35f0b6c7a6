"""Quotients of two activations in integers: every pair, every runtime, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge.api import check_artifact, export_model
from edge.define.interpret_int8 import evaluate_int8
from edge.export import float_graph, int8_graph, save_c99
from edge.ops.registry import SPECS
from edge.targets.c99.runner import CompiledRunner
from fedkit.core.errors import ExportError, PlanError
from fedkit.engine.plan.capture import capture
from fedkit.graph import ir
from fedkit.graph.interpret import evaluate
from fedkit.graph.ops.arithmetic import Least
from fedkit.graph.verify import verify
from tests.calls import Calls
from tests.edge.policy_places import PolicyRun, in_litert_alone, in_torchs_layout
from tests.edge.single_ops import EVERY, Case, Random, activation, constants, sum_of_pairs
from tests.edge.targets.c99.library import need_gcc
from tests.edge.targets.compiled import PLAIN, QUICK
from tests.sets import slow_but


def quotients(random: Random) -> Case:
    """Every pair; often many quotients are half way between two integers."""
    left, right = (float(np.float32(np.exp2(random.uniform(-9, 3)))) for _ in range(2))
    usual = left / right * np.exp2(random.uniform(-8, 8))
    out = left / right / 2.0 ** random.integers(0, 8) if random.random() < 0.5 else usual
    points = int(random.integers(-128, 128)), -128, int(random.integers(-128, 128))
    graph, codes = sum_of_pairs((left, right, left + right), points, kind="sub")
    y = activation("y", graph.tensors["y"].shape, float(out), points[2])
    how = Least(float(right * random.choice([0, 1, 3, 7])))
    divide = replace(graph.ops[-1], kind="div", attributes=how)
    tensors = {**graph.tensors, "y": y}
    made = replace(graph, tensors=tensors, ops=(*graph.ops[:-1], divide))
    verify(made)
    return made, codes


def floor_of(graph: ir.Graph) -> int:
    how = graph.ops[-1].attributes
    assert isinstance(how, Least)
    return max(1, round(how.value / graph.tensors["right"].scale))


@pytest.mark.parametrize("seed", slow_but(range(4), range(60)))
def test_our_integers_are_the_quotient_rounded_half_up(seed: int) -> None:
    graph, codes = quotients(np.random.default_rng((seed, 1)))
    x, y, out = (graph.tensors[name] for name in ("left", "right", "y"))
    found = evaluate_int8(graph, codes)[0, ..., 0].astype(int)
    ratio = Fraction(x.scale) / Fraction(y.scale) / Fraction(out.scale)
    off = 0
    for b in range(0, 256, 5):
        divisor = max(int(EVERY[b]) + 128, floor_of(graph))
        for a in range(0, 256, 3):
            exact = ratio * (int(EVERY[a]) - x.zero_point) / divisor
            wanted = math.floor(exact + Fraction(1, 2)) + out.zero_point
            got, wanted = found[b, a], min(max(wanted, -128), 127)
            near_half = abs(exact % 1 - Fraction(1, 2)) < Fraction(1, 64)
            assert got == wanted or (near_half and abs(got - wanted) == 1)
            off += got != wanted
    assert off <= 52 * 86 * 0.03


@pytest.mark.parametrize("seed", slow_but(range(3), range(40)))
def test_runtimes_give_every_quotient(seed: int, place: PolicyRun) -> None:
    graph, codes = quotients(np.random.default_rng((seed, 2)))
    expected = evaluate_int8(graph, codes, place.policy)
    found = place.run(graph, codes).reshape(expected.shape)
    assert np.count_nonzero(found != expected) == 0
    assert np.abs(evaluate_int8(graph, codes).astype(int) - expected).max() <= 1


def test_litert_without_xnnpack_gives_every_quotient() -> None:
    graph, codes = quotients(np.random.default_rng(3))
    expected = evaluate_int8(graph, codes, "half_even")
    assert np.count_nonzero(in_litert_alone(graph, codes) != expected) == 0


BROADCAST = {
    "of one channel": ((1, 3, 5, 4), (1, 3, 5, 1)),
    "of one pixel": ((1, 3, 5, 4), (1, 1, 1, 4)),
    "of a row": ((1, 3, 5, 4), (1, 3, 1, 4)),
    "of one number": ((1, 3, 5, 4), (1, 1, 1, 1)),
    "which repeat what is divided": ((1, 3, 5, 1), (1, 3, 5, 4)),
    "of features": ((1, 33), (1, 33)),
}


def divided_by(left: ir.Shape, right: ir.Shape) -> Case:
    """Inputs divided by others, both taken out of one vector."""
    sizes = int(np.prod(left)), int(np.prod(right))
    random = np.random.default_rng(0)
    x = activation("x", (1, sum(sizes)), 0.03, -128)
    tensors, ops = [x], []
    for name, shape, start in (("a", left, 0), ("b", right, sizes[0])):
        flat = activation(f"{name}.flat", (1, int(np.prod(shape))), 0.03, -128)
        weight = np.eye(sum(sizes))[start : start + flat.shape[1]]
        made = constants(name, "linear", weight, np.zeros(len(weight)), np.ones(len(weight)), x)
        tensors += [flat, *made, activation(name, shape, 0.03, -128)]
        ops.append(ir.Op("linear", ("x", *(each.name for each in made)), (flat.name,)))
        ops.append(ir.Op("reshape", (flat.name,), (name,)))
    shape = tuple(np.broadcast_shapes(left, right))
    tensors.append(activation("y", shape, 0.01, 5))
    ops.append(ir.Op("div", ("a", "b"), ("y",), attributes=Least(0.2)))
    graph = ir.Graph({each.name: each for each in tensors}, tuple(ops), ("x",), ("y",))
    verify(graph)
    return graph, random.integers(-128, 128, (16, sum(sizes))).astype(np.int8)


@pytest.mark.parametrize("name", BROADCAST)
def test_divisors_are_repeated(name: str, place: PolicyRun, tmp_path: Path) -> None:
    graph, codes = divided_by(*BROADCAST[name])
    expected = evaluate_int8(graph, codes, place.policy)
    found = place.run(graph, codes).reshape(expected.shape)
    assert np.count_nonzero(found != expected) == 0


@pytest.mark.parametrize("name", BROADCAST)
def test_compiled_quotients_are_exact(name: str, tmp_path: Path) -> None:
    need_gcc()
    graph, codes = divided_by(*BROADCAST[name])
    expected = evaluate_int8(graph, codes)
    for flags in (QUICK, PLAIN):
        saved = save_c99(graph, np.zeros(codes.shape, np.float32), tmp_path / flags[-1], {})
        found = CompiledRunner(saved.path, flags).predict_int8(in_torchs_layout(codes))
        assert np.array_equal(ir.to_graph_layout(found).reshape(expected.shape), expected)


# Models


def model(function: Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    before = nn.Conv2d(3, 4, 3, padding=1)
    return nn.Sequential(before, Calls(function), nn.Flatten(), nn.Linear(4 * 64, 5)).eval()


def images(count: int = 12) -> ir.FloatArray:
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)


def by_a_sum(x: Tensor) -> Tensor:
    return x / (x.relu().mean((2, 3), keepdim=True) + 0.1)


def test_a_model_that_divides_is_exported_and_divides_by_what_is_below_0_in_floats(
    tmp_path: Path,
) -> None:
    for target in ("model.tflite", "model.onnx", "model-c99"):
        export_model(model(by_a_sum), images(), tmp_path / target)
        assert check_artifact(tmp_path / target, images()).mismatches == 0
    signed = model(lambda x: x / (x.mean((2, 3), keepdim=True) - 3))
    with torch.no_grad():
        wanted = signed(torch.from_numpy(images())).numpy()
    found = evaluate(float_graph(signed, (3, 8, 8)), ir.to_graph_layout(images()))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ExportError, match="must divide by what is never below 0"):
        int8_graph(signed, images(), accept_error=True)


def test_what_cannot_divide_says_so() -> None:
    with pytest.raises(PlanError, match="div: a plan has no such op"):
        capture(model(by_a_sum), (3, 8, 8))
    with pytest.raises(ExportError, match="a division by an activation"):
        float_graph(model(lambda x: torch.ones(8, 8) / (x.relu() + 1)), (3, 8, 8))
    assert SPECS["div"].fpga is None
