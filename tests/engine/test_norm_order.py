"""Statistics of norms keep the model's order, which a message has, whatever runs first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from torch import Tensor, nn

from fedkit.engine.base import Engine
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.nn.zoo import seeded
from fedkit.sparse.state import ModelState
from fedkit.stats.norms import as_stats
from fedkit.tasks.task import Examples, cross_entropy


class Backwards(nn.Module):
    """Its norms run in the reverse of the order in which they are made."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.second, self.first = (nn.BatchNorm1d(n) for n in (3, 4, 5))
        self.c, self.b, self.a = nn.Linear(4, 3), nn.Linear(5, 4), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.b(self.first(self.a(x))))
        found: Tensor = self.last(self.c(x))
        return found


Make = Callable[[Plan, ModelState], Engine]


@pytest.mark.parametrize("make", [SparseEngine, IntegerEngine], ids=["sparse", "integer"])
def test_moments_come_in_the_models_order(make: Make) -> None:
    reference = TorchEngine(seeded(Backwards, 0), cross_entropy)
    state = reference.initial_state()
    engine = make(capture(reference.module(state), (6,)), state)
    random = np.random.default_rng(0)
    data = Examples(random.standard_normal((40, 6), np.float32), random.integers(0, 3, 40))
    for frozen in (False, True):
        wanted = as_stats(reference.norm_moments(state, data, frozen))
        found = as_stats(engine.norm_moments(state, data, frozen))
        assert list(found) == list(wanted) == list(engine.layout.stats)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=0.2, atol=0.05)
