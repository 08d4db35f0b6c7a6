"""Models whose integers runtimes are known to have got wrong: all of ours give the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge.define.interpret_int8 import evaluate_int8
from edge.export import int8_graph
from edge.quantize.to_int8 import Scaling
from fedkit.graph import ir
from tests.edge.define.tflite_runtimes import int8_inputs
from tests.edge.policy_places import PolicyRun
from tests.edge.targets.c99.library import need_gcc
from tests.edge.targets.compiled import assert_same_integers

Floats = NDArray[np.float32]
SHAPE = (4, 10, 6)


class DropsAxes(nn.Module):
    """A mean to [1, c], which TFLite would compute by another kernel than one to [1, 1, 1, c]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class ReluInConcat(nn.Module):
    """A lone ReLU that ends in far coarser steps than it reads: those of what it is joined with."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        nn.init.normal_(self.large.weight, 0, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        small = self.small(x)
        return torch.cat([small.relu(), self.large(small), nn.functional.relu6(small)], 1).flatten(
            1
        )


class SumOfTies(nn.Module):
    """A residual sum behind a sum, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x) + self.b(x)) + x
        return nn.functional.avg_pool2d(x, 2).flatten(1)


class Twice(nn.Module):
    """A concat of one map twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 5, 1), nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.b(torch.cat([x, x], 1)).flatten(1)


def norm(channels: int) -> nn.Module:
    """Return a BatchNorm as after training."""
    made = nn.BatchNorm2d(channels)
    made.running_mean, made.running_var = torch.randn(channels), torch.rand(channels) + 0.3
    nn.init.normal_(made.weight)
    return made


def ends_flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a mean that drops its axes": DropsAxes,
    "a mean that keeps its axes": lambda: ends_flat(nn.AdaptiveAvgPool2d(1)),
    "a lone relu in a concat": ReluInConcat,
    "a norm behind a relu": lambda: ends_flat(
        nn.Conv2d(4, 8, 3), nn.ReLU(), norm(8), nn.Conv2d(8, 4, 3)
    ),
    "a sum of ties": SumOfTies,
    "one map twice": Twice,
    "an average of all": lambda: ends_flat(nn.AvgPool2d((10, 6))),
    "an average of some": lambda: ends_flat(nn.AvgPool2d(3, 2)),
    "an average with padding": lambda: ends_flat(nn.AvgPool2d(3, 2, 1)),
    "a maximum with ceil": lambda: ends_flat(nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    "a maximum with a remainder": lambda: ends_flat(nn.MaxPool2d(4, 4, ceil_mode=True)),
}


def quarters(n: int = 24) -> Floats:
    """Return inputs on a grid, mostly negative, whose sums are often half way between integers."""
    random = np.random.default_rng(0)
    return (random.integers(-64, 8, (n, *SHAPE)) / 32).astype(np.float32)


@cache
def exported(name: str, scales: Scaling) -> ir.Graph:
    return int8_graph(MODELS[name]().eval(), quarters(), scales=scales)


@pytest.mark.parametrize("scales", ["float", "pow2"])
@pytest.mark.parametrize("name", MODELS)
def test_the_runtimes_agree_with_the_interpreter(
    name: str, scales: Scaling, place: PolicyRun
) -> None:
    graph = exported(name, scales)
    codes = ir.to_graph_layout(int8_inputs(graph, quarters()))
    expected = evaluate_int8(graph, codes, place.policy)
    np.testing.assert_array_equal(place.run(graph, codes).reshape(expected.shape), expected)


@pytest.mark.parametrize("name", ["an average of some", "a lone relu in a concat"])
def test_plain_c_agrees_with_the_interpreter(name: str, tmp_path: Path) -> None:
    need_gcc()
    assert_same_integers(exported(name, "float"), quarters(), tmp_path / "model", "speed")
