"""Values from other places in exports: what slimming leaves of the lists, and models of people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge import passes
from edge.define.interpret_int8 import evaluate_int8
from edge.export import float_graph
from edge.passes.slim import slim
from edge.targets.tflite import emitter as tflite
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.interpret import evaluate
from fedkit.graph.ops.registry import SPECS
from fedkit.graph.places import Places, places_of
from tests.calls import Calls
from tests.edge.in_runtimes import (
    assert_same_in,
    assert_same_in_c,
    assert_same_in_litert_alone,
    codes_of,
    integers_of,
)
from tests.edge.policy_places import PolicyRun
from tests.moving import KINDS


def model_of(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    return make(), shape


# Targets


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_people_in_runtimes(kind: str, place: PolicyRun) -> None:
    assert_same_in(place, integers_of(*model_of(kind)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_people_in_litert_without_xnnpack(kind: str) -> None:
    assert_same_in_litert_alone(integers_of(*model_of(kind)))


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["speed", "size"])
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_people_in_c(kind: str, goal: str, tmp_path: Path) -> None:
    assert_same_in_c(integers_of(*model_of(kind)), goal, tmp_path)


def test_c_refuses_more_places_than_its_lists_hold() -> None:
    from edge.targets.c99.calls import compile_graph

    shape = (1, 2**16 + 1)
    tensors = [
        ir.Tensor(n, s, "int8", None, ir.Quantization((1.0,), (0,)))
        for n, s in (("x", shape), ("y", (1, 2)))
    ]
    op = ir.Op("take", ("x",), ("y",), attributes=Places(channels=(0, 2**16)))
    graph = ir.Graph({each.name: each for each in tensors}, (op,), ("x",), ("y",))
    with pytest.raises(ExportError, match="it takes of 65537 places; 65536 of an axis can be"):
        compile_graph(graph)


FORMS = [
    (Places(rows=(1, 3)), ["STRIDED_SLICE"]),
    (Places(rows=(0, 1, 2), columns=(4,), channels=(0, 2)), ["STRIDED_SLICE"]),
    (Places(columns=(0, 0, 1, 1)), ["GATHER"]),
    (Places(rows=(3, 2, 1), channels=(1, 2)), ["STRIDED_SLICE", "GATHER"]),
    (Places(channels=(0, 1, 2)), ["STRIDED_SLICE"]),
]


@pytest.mark.parametrize(("places", "operators"), FORMS)
def test_steps_are_slices_in_tflite_and_all_else_gathers(
    places: Places, operators: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (1, 4, 5, 3)
    out = SPECS["take"].shape
    op = ir.Op("take", ("x",), ("y",), attributes=places)
    x = ir.Tensor("x", shape)
    graph = ir.Graph({"x": x}, (op,), ("x",), ("y",))
    graph = replace(graph, tensors={"x": x, "y": ir.Tensor("y", out(graph, op))})
    written: list[str] = []
    add = tflite._File.operator

    def noted(self: tflite._File, code: str, *rest: object, **fields: object) -> None:
        written.append(code)
        add(self, code, *rest, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(tflite._File, "operator", noted)
    assert tflite.emit(graph) and written == operators


# Slimming


def pruned(function: Callable[[Tensor], Tensor], dead: list[int], count: int) -> nn.Module:
    """Return a model in which nobody reads some channels of what a function gives."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), Calls(function), nn.Conv2d(count, 2, 1), nn.Flatten()
    )
    last = model[3]
    assert isinstance(last, nn.Conv2d)
    with torch.no_grad():
        last.weight[:, dead] = 0
    return model


SLIM: dict[str, tuple[Callable[[Tensor], Tensor], list[int], int, int, tuple[int, ...]]] = {
    # function, channels of its result that nobody reads, how many it has; channels that are left
    # of its input, and what is then taken of them
    "flipped": (lambda x: x.flip(1), [0, 5], 6, 4, (3, 2, 1, 0)),
    "some never taken": (lambda x: x[:, 1:4], [], 3, 3, (0, 1, 2)),
    "taken twice, read once": (lambda x: x[:, [0, 0, 1, 4]], [1], 4, 3, (0, 0, 1, 2)),
    "taken twice, read never": (lambda x: x[:, [0, 0, 1, 4]], [0, 1], 4, 2, (0, 1)),
    "repeated": (lambda x: x.repeat(1, 2, 1, 1), [2, 8, 3], 12, 5, (*range(5), *range(5))),
}


@pytest.mark.parametrize("name", SLIM)
def test_channels_that_are_taken_several_times_or_never_are_slimmed_rightly(name: str) -> None:
    function, dead, count, left, places = SLIM[name]
    graph = integers_of(pruned(function, dead, count), (3, 4, 4))
    slimmed = slim(graph)
    codes = codes_of(graph)
    for policy in ("half_up", "half_even", "gemmlowp"):
        was, now = (evaluate_int8(each, codes, policy) for each in (graph, slimmed))
        np.testing.assert_array_equal(was, now)
    (op,) = (op for op in slimmed.ops if op.kind == "take")
    assert slimmed.tensors[op.inputs[0]].shape[-1] == left
    assert places_of(op).channels == places


def test_moves_of_rows_are_left_alone_by_slimming() -> None:
    graph = integers_of(pruned(lambda x: x.flip(2), [1], 6), (3, 4, 4))
    (op,) = (op for op in slim(graph).ops if op.kind == "take")
    assert places_of(op) == Places(rows=(3, 2, 1, 0))


@pytest.mark.parametrize(
    ("function", "places"),
    [
        (lambda x: x.flip(2)[:, :, 1:].roll(1, 2), Places(rows=(0, 2, 1))),
        (lambda x: x[:, [2, 0]].flip(3), Places(columns=(3, 2, 1, 0), channels=(2, 0))),
        (lambda x: x.flip(1).flip(1), Places(channels=tuple(range(6)))),
    ],
)
def test_takes_that_follow_each_other_are_one(
    function: Callable[[Tensor], Tensor], places: Places
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), Calls(function), nn.Conv2d(6, 2, 1), nn.Flatten())
    if places.channels is not None:
        model[2] = nn.Conv2d(len(places.channels), 2, 1)
    floats = float_graph(model.eval(), (3, 4, 4))
    (found,) = [places_of(op) for op in floats.ops if op.kind == "take"]
    assert found == places
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    given = evaluate(floats, ir.to_graph_layout(x)).reshape(wanted.shape)
    np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)


def test_a_take_that_others_read_stays() -> None:
    def moves(x: Tensor) -> Tensor:
        turned = x.flip(2)
        return torch.cat([turned, turned[:, :, 1:]], 2)

    model = nn.Sequential(nn.Conv2d(3, 6, 1), Calls(moves), nn.Conv2d(6, 2, 1), nn.Flatten())
    kinds = [op.kind for op in float_graph(model.eval(), (3, 4, 4)).ops]
    assert kinds.count("take") == 2


def test_optimising_keeps_what_is_taken() -> None:
    model, shape = model_of("halves")
    kinds = [op.kind for op in passes.optimise(float_graph(model.eval(), shape)).ops]
    assert kinds.count("take") == 3
