"""A metric is given the outputs batch by batch: the same number, and one batch in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from fedkit.engine.base import Engine, measure
from fedkit.engine.flops import CountingEngine, positions
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.nn.zoo import seeded
from fedkit.tasks import metrics
from fedkit.tasks.metrics import Accumulator, Measure
from fedkit.tasks.task import Examples, Metric, cross_entropy
from tests.captured import captured

COUNT = 700  # some batches of each engine


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def torch_engine() -> TorchEngine:
    return TorchEngine(seeded(model, 0), cross_entropy)


def counting() -> CountingEngine:
    engine = torch_engine()
    return CountingEngine(engine, positions(model(), (5,)))


def planned(kind: Callable[..., Engine]) -> Engine:
    engine = torch_engine()
    return kind(captured(model(), (5,)), engine.initial_state())


ENGINES: dict[str, Callable[[], Engine]] = {
    "torch": torch_engine,
    "counting": counting,
    "sparse": lambda: planned(SparseEngine),
    "integer": lambda: planned(IntegerEngine),
}


@dataclass(frozen=True)
class BatchSizes(Measure):
    """Notes how many examples come at once, and how many in all."""

    name = "sizes"

    def start(self) -> Accumulator:
        return Noted()


class Noted(Accumulator):
    def __init__(self) -> None:
        self.sizes: list[int] = []

    def add(self, outputs: NDArray[Any], targets: NDArray[Any]) -> None:
        assert len(outputs) == len(targets)
        self.sizes.append(len(outputs))

    def value(self) -> float:
        assert sum(self.sizes) == COUNT
        return max(self.sizes)


@pytest.mark.parametrize("name", ENGINES)
def test_a_metric_sees_batches_and_says_the_same(name: str) -> None:
    engine, random = ENGINES[name](), np.random.default_rng(0)
    inputs = random.standard_normal((COUNT, 5), np.float32)
    data, state = Examples(inputs, random.integers(0, 3, COUNT)), engine.initial_state()
    outputs = engine.outputs(state, data.inputs)
    for row in (metrics.Accuracy(), metrics.F1(), metrics.RocAuc(), metrics.Perplexity()):
        found = measure(engine, state, data, Metric(row, row.name))
        assert found == row(outputs, data.targets)
    assert 2 <= measure(engine, state, data, Metric(BatchSizes(), "sizes")) <= 256
    # A function of one's own is given everything at once.
    seen = Metric(lambda outputs, targets: float(outputs[-1, 0]) + len(targets), "last")
    assert measure(engine, state, data, seen) == float(outputs[-1, 0]) + COUNT
