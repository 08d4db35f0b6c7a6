"""Statistics of a fleet against BatchNorm over its pooled data, in plain torch and float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedkit.config import make_config
from fedkit.device.round import Device
from fedkit.engine.base import Engine
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.plan.capture import capture
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.methods.exact_norms import exact_statistics
from fedkit.nn.norm import with_l1_norms
from fedkit.sparse.candidates import CandidatePool
from fedkit.sparse.state import ModelState, Weights
from fedkit.stats.norms import as_stats, merge_norms
from fedkit.tasks.task import Examples, cross_entropy
from tests.fleet.tiny import FaultyFleet
from tests.methods.pooled import errors, pooled
from tests.sets import slow, slow_but

SHAPE = (2, 6, 6)


class Branches(nn.Module):
    """Norms in a row, two on parallel branches, and one behind both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.first = nn.BatchNorm2d(6)
        self.left = nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.left_norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1)
        self.deep_norm = nn.BatchNorm2d(8)
        self.right = nn.Conv2d(6, 8, 1, stride=2)
        self.right_norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 5, 3)
        self.last_norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.stem(x)))
        left = torch.relu(self.left_norm(self.left(x)))
        both = torch.relu(self.deep_norm(self.deep(left)) + self.right_norm(self.right(x)))
        return self.head(torch.flatten(torch.relu(self.last_norm(self.last(both))), 1))


LEVELS = (("first",), ("left_norm", "right_norm"), ("deep_norm",), ("last_norm",))


def module(l1: bool) -> nn.Module:
    torch.manual_seed(3)
    model: nn.Module = Branches()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
    return with_l1_norms(model) if l1 else model


def skewed() -> list[Examples]:
    """Three devices whose inputs lie apart, of different sizes; one needs several batches."""
    rng = np.random.default_rng(0)
    shares = []
    for count, offset, scale in ((300, 0.0, 1.0), (40, 3.0, 0.5), (11, -2.0, 2.0)):
        inputs = (offset + scale * rng.standard_normal((count, *SHAPE))).astype(np.float32)
        shares.append(Examples(inputs, np.arange(count) % 3))
    return shares


def engine_of(name: str, l1: bool) -> Engine:
    torch_engine = TorchEngine(module(l1), cross_entropy)
    if name == "torch":
        return torch_engine
    state = torch_engine.initial_state()
    plan = capture(torch_engine.module(state), SHAPE)
    if name == "integer":
        return IntegerEngine(plan, state, 8)
    return SparseEngine(plan, state, threads=2 if name == "two threads" else 1)


def ask(engine: Engine, **changes: Any) -> tuple[Sequence[Weights], FaultyFleet]:
    """The statistics of two candidates: all weights, and the larger half of each layer."""
    config = make_config({"devices": 3, "bn_merge": "exact", "method": "dense", **changes})
    state = engine.initial_state()
    whole = [mask.size for mask in state.masks.values()]
    pool = CandidatePool(state, np.array([whole, [size // 2 for size in whole]], np.int32))
    fleet = FaultyFleet([Device(i, data, engine, config) for i, data in enumerate(skewed())])
    return exact_statistics(config, engine, SHAPE, fleet, pool, number=1), fleet


@pytest.mark.parametrize(
    ("name", "l1"),
    slow_but(
        (("torch", False), ("torch", True), ("sparse", True)),
        itertools.product(("torch", "sparse", "two threads"), (False, True)),
    ),
)
def test_every_norm_has_the_statistics_of_the_pooled_data(name: str, l1: bool) -> None:
    engine = engine_of(name, l1)
    assert engine.norm_levels(SHAPE) == LEVELS
    (stats, thin), fleet = ask(engine)
    assert not fleet.refused and len(fleet.exchanges) == (8 if l1 else 4)
    for found, share in ((stats, 1.0), (thin, 0.5)):
        model = module(l1)
        state = engine.initial_state()
        counts = np.array([[int(share * m.size) for m in state.masks.values()]], np.int32)
        weights = CandidatePool(state, counts).candidate(0).weights
        with torch.no_grad():
            for key, value in model.named_parameters():
                value.copy_(torch.from_numpy(weights[key]))
        assert max(errors(found, pooled(model, skewed())).values()) < 1e-5


@pytest.mark.parametrize("l1", [False, True], ids=["L2", "L1"])
def test_one_message_is_near_and_not_equal_beyond_the_first_norm(l1: bool) -> None:
    """What `pooled` is, and why it is not called exact."""
    engine = engine_of("torch", l1)
    state, right = engine.initial_state(), pooled(module(l1), skewed())
    moments = [engine.norm_moments(state, share) for share in skewed()]
    found = errors(as_stats(merge_norms(moments, "pooled", "mean", engine.absolute_norms)), right)
    assert (found["first"] < 1e-5) != l1
    assert all(found[name] > 0.02 for name in right if name != "first")


@pytest.mark.parametrize("l1", [slow(False), True], ids=["L2", "L1"])
def test_integers_round_and_follow_the_same_rule(l1: bool) -> None:
    """Each device rounds its inputs by itself: near the pooled data as far as 8 bits go."""
    engine, right = engine_of("integer", l1), pooled(module(l1), skewed())
    (stats, _), fleet = ask(engine)
    assert not fleet.refused
    found = errors(stats, right)
    moments = [engine.norm_moments(engine.initial_state(), share) for share in skewed()]
    once = errors(as_stats(merge_norms(moments, "pooled", "mean", engine.absolute_norms)), right)
    assert max(found.values()) < 0.1
    assert max(found.values()) < max(once.values()) / 2


def test_asking_leaves_the_other_statistics_of_an_engine_alone() -> None:
    """Programs are kept; a frozen pass must not stay in the next one."""
    for name in ("torch", "sparse", "integer"):
        engine, share = engine_of(name, False), skewed()[1]
        state = engine.initial_state()
        before = engine.norm_moments(state, share)
        frozen = engine.norm_moments(state, share, frozen=True)
        after = engine.norm_moments(state, share)
        assert all(before[n].mean.tobytes() == after[n].mean.tobytes() for n in before)
        assert any((before[n].mean != frozen[n].mean).any() for n in before)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)
        self.b, self.a = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.one(x))
        if x.sum() != 0:
            x = self.b(self.two(x))
        return x.mean((2, 3))


def test_a_model_that_cannot_be_captured_is_asked_for_one_norm_after_the_other() -> None:
    engine = TorchEngine(Untraceable(), cross_entropy)
    assert engine.norm_levels(SHAPE) == (("a",), ("b",))


def test_devices_that_are_away_for_a_message_are_left_out_of_it_alone() -> None:
    engine = engine_of("torch", False)
    config = make_config({"devices": 3, "bn_merge": "exact", "method": "dense"})
    state = engine.initial_state()
    pool = CandidatePool(state, np.array([[mask.size for mask in state.masks.values()]], np.int32))

    class Coming(FaultyFleet):
        """The last device misses the second message; the first one all but that."""

        def choose(self, order: Sequence[int], count: int, spare: int = 0) -> None:
            """Ask every device all the same."""

        def exchange(self, phase: Any, request: Any, read: Any) -> Any:
            everybody, second = self._devices, len(self.exchanges) == 1
            self._devices = everybody[:2] if second else everybody[1:]
            try:
                return super().exchange(phase, request, read)
            finally:
                self._devices = everybody

    fleet = Coming([Device(i, data, engine, config) for i, data in enumerate(skewed())])
    (stats,) = exact_statistics(config, engine, SHAPE, fleet, pool, number=1)
    assert not fleet.refused and not fleet.failed
    # By hand, from each device's moments under the statistics so far.
    expected = dict(state.stats)
    for level, present in zip(LEVELS, ((1, 2), (0, 1), (1, 2), (1, 2)), strict=True):
        now = ModelState(state.weights, expected, state.masks)
        parts = [engine.norm_moments(now, skewed()[i], frozen=True) for i in present]
        merged = as_stats(merge_norms([{n: p[n] for n in level} for p in parts], "pooled"))
        expected = {**expected, **merged}
    for name, value in expected.items():
        np.testing.assert_allclose(stats[name], value, rtol=1e-5, atol=1e-6)
