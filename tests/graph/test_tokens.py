"""Layers over the last axis are convolutions of one pixel, and moves between them are gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_onnx import lower as lower_onnx
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import evaluate, evaluate_all
from fedkit.graph.late_moves import move_late
from fedkit.graph.verify import verify
from tests.calls import Calls
from tests.graph.exported import exported
from tests.tokens import KINDS, NORMED, made

Function = Callable[[Tensor], Tensor]


def assert_same(graph: ir.Graph, model: nn.Module, shape: tuple[int, ...]) -> ir.Graph:
    """Assert that a graph gives torch's numbers, before and after its moves are late."""
    x = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(x)).numpy()
    late = move_late(graph)
    verify(late)
    for each in (graph, late):
        found = ir.from_graph_layout(evaluate(each, ir.to_graph_layout(x))).reshape(wanted.shape)
        assert np.abs(found - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())
    assert (late.inputs, late.outputs, late.series) == (graph.inputs, graph.outputs, graph.series)
    return late


MOST_TURNS = {"mixer": 2, "next": 0, "normed": 0}
"""Of the mixer's tokens to channels and back."""


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_people_turn_no_more_than_they_must(kind: str) -> None:
    model, shape = made(kind)
    late = assert_same(lower(model, shape), model, shape)
    assert Counter(op.kind for op in late.ops)["transpose"] <= MOST_TURNS[kind]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != NORMED])
def test_files_of_torchs_exporter(kind: str) -> None:
    model, shape = made(kind)
    late = assert_same(lower_onnx(exported(model.eval(), shape)), model, shape)
    assert Counter(op.kind for op in late.ops)["transpose"] <= MOST_TURNS[kind]


def layer(over: int) -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(over, 5)


SPELT: dict[str, tuple[Function, tuple[int, ...]]] = {
    "of a map": (layer(4), (2, 3, 4)),
    "of tokens": (layer(4), (3, 4)),
    "of one token": (layer(4), (1, 4)),
    "of one channel": (layer(1), (3, 1)),
    "by a matrix": (lambda x: x @ torch.arange(12.0).view(4, 3), (5, 4)),
    "by a matrix, of a map": (lambda x: torch.matmul(x, torch.ones(4, 3)), (2, 5, 4)),
    "by a matrix, of features": (lambda x: x @ torch.arange(12.0).view(4, 3), (4,)),
    "with its bias first": (lambda x: torch.addmm(torch.ones(3), x, torch.ones(4, 3)), (4,)),
    "without a bias": (lambda x: F.linear(x, torch.arange(8.0).view(2, 4)), (3, 4)),
}


@pytest.mark.parametrize("name", SPELT)
def test_each_spelling(name: str) -> None:
    function, shape = SPELT[name]
    model = nn.Sequential(nn.ReLU(), Calls(function))
    assert_same(lower(model, shape), model, shape)


def test_constants_go_with_the_values_they_are_added_to() -> None:
    torch.manual_seed(0)
    place, factor = torch.randn(1, 5, 6), torch.randn(6)

    def function(x: Tensor) -> Tensor:
        y = first(x) + place
        return second(F.gelu(factor * (1 - y)) / 3) - place[:, :1]

    first, second = nn.Linear(4, 6), nn.Linear(6, 6)
    model = Calls(function)
    late = assert_same(lower(model, (5, 4)), model, (5, 4))
    # The factor is one per channel now, and so part of what is before it.
    assert [op.kind for op in late.ops] == [
        *("transpose", "conv2d", "add", "affine", "affine", "gelu", "affine", "conv2d"),
        *("affine", "transpose"),
    ]


STEPS: dict[str, Function] = {
    "layer": lambda x: F.linear(x, torch.linspace(-1, 1, x.shape[-1] ** 2).view(x.shape[-1], -1)),
    "grown": lambda x: F.linear(x, torch.linspace(-1, 1, x.shape[-1] * 3).view(3, -1)),
    "turned": lambda x: x.transpose(-1, -2),
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sum": lambda x: x + x.sigmoid(),
    "product": lambda x: x * x.transpose(-1, -2) if x.shape[-1] == x.shape[-2] else x,
    "per channel": lambda x: x * torch.linspace(0.5, 2, x.shape[1]).view(-1, *[1] * (x.dim() - 2)),
    "per last": lambda x: torch.linspace(0.5, 2, x.shape[-1]) - x,
    "per place": lambda x: x + torch.linspace(-1, 1, x.shape[1:].numel()).view(x.shape[1:]),
    "half": lambda x: x[:, : (x.shape[1] + 1) // 2],
    "last": lambda x: x[:, -1:],
    "flipped": lambda x: x.flip(-1),
    "series": lambda x: x.flatten(2),
    "map": lambda x: x.unsqueeze(1) if x.dim() == 3 else x,
    "joined": lambda x: torch.cat([x, x.tanh()], 1),
    "mean": lambda x: x.mean(1, keepdim=True),
    "largest": lambda x: x.amax(-1, keepdim=True),
}


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=9), st.integers(2, 3))
def test_any_chain_gives_torchs_numbers(names: list[str], dimensions: int) -> None:
    shape = (3, 4, 5)[:dimensions]

    def function(x: Tensor) -> Tensor:
        for name in names:
            x = STEPS[name](x)
        return x.relu()

    model = Calls(function)
    assert_same(lower(model, shape), model, shape)


def test_a_matrix_of_another_size_is_refused() -> None:
    model = nn.Sequential(nn.ReLU(), Calls(lambda x: torch.addmm(x, x, torch.ones(3, 3))))
    with pytest.raises(ExportError, match="biases that depend on the input"):
        lower(model, (3,))
    batched = nn.Sequential(nn.ReLU(), Calls(lambda x: x @ torch.ones(1, 3, 3)))
    with pytest.raises(ExportError, match=r"a constant \(1, 3, 3\); \[in, out\] can be"):
        lower(batched, (2, 3))


class TurnedSteps(nn.Module):
    """Two layers of tokens, whose result the model turns before it returns it, once or more."""

    def __init__(self, ends: Callable[[Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.first, self.second, self.ends = nn.Linear(4, 6), nn.Linear(6, 3), ends

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.ends(self.second(self.first(x).tanh()))


def test_an_output_that_is_turned_last_keeps_no_move_where_it_is() -> None:
    model = TurnedSteps(lambda x: x.transpose(1, 2))
    late = assert_same(lower(model, (5, 4)), model, (5, 4))
    assert Counter(op.kind for op in late.ops)["transpose"] == 1  # of the input


SEVERAL: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "as it is and turned": lambda x: (x, x.transpose(1, 2)),
    "turned, and with a function": lambda x: (x.transpose(1, 2), x.tanh()),
    "turned, and turned with a function": lambda x: (x.mT, x.tanh().mT),
    "turned twice": lambda x: (x.mT, x.mT * 2),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_outputs_of_one_value_keep_their_names(kind: str) -> None:
    model = TurnedSteps(SEVERAL[kind]).eval()
    graph = lower(model, (5, 4))
    late = move_late(graph)
    verify(late)
    assert late.outputs == graph.outputs
    x = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
    found = evaluate_all(late, {late.inputs[0]: ir.to_graph_layout(x)})
    for one, wanted in zip(found, model(torch.from_numpy(x)), strict=True):
        near = wanted.detach().numpy()
        given = ir.from_graph_layout(one).reshape(near.shape)
        np.testing.assert_allclose(given, near, atol=1e-5)
