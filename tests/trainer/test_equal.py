"""What a trainer in C computes equals the sparse engine's plain kernels, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedkit.bench.sparsetrain import random_batch, randomly_pruned
from fedkit.engine.base import LocalTraining
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.execution import Schedule
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.stored import STORED_BITS
from fedkit.engine.torch import TorchEngine
from fedkit.nn.norm import L1BatchNorm2d
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples, cross_entropy
from fedkit.trainer import storage
from fedkit.trainer.emit import emit
from tests.sets import slow
from tests.trainer.compiled import check_equal, model

DENSITIES = (1.0, 0.1, 0.05, 0.01)
SMALL = (3, 8, 8)


@pytest.mark.parametrize("density", DENSITIES)
def test_resnet8(tmp_path: Path, density: float) -> None:
    check_equal(tmp_path, *model("resnet8", SMALL, density), random_batch(3, SMALL))


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_stored_bits(tmp_path: Path, bits: int) -> None:
    shape = (3, 13, 9)  # odd planes: a code of 4 bits is left over in each channel
    check_equal(tmp_path, *model("resnet8", shape, 0.05), random_batch(3, shape), bits=bits)


@pytest.mark.parametrize(("batch", "bits"), [(2, 32), slow((4, 8)), slow((8, 32))])
def test_batches(tmp_path: Path, batch: int, bits: int) -> None:
    state = model("resnet8", SMALL, 0.1)
    check_equal(tmp_path, *state, random_batch(2 * batch, SMALL), batch, bits)


@pytest.mark.parametrize("density", [slow(1.0), slow(0.1), 0.05, slow(0.01)])
def test_ds_cnn(tmp_path: Path, density: float) -> None:
    shape = (1, 25, 10)
    check_equal(tmp_path, *model("ds-cnn", shape, density), random_batch(2, shape), bits=8)


@pytest.mark.slow
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(("name", "bits"), [("mobilenetv2-w0.25", 8), ("resnet18-gn-w16", 32)])
def test_larger_models(tmp_path: Path, name: str, density: float, bits: int) -> None:
    shape = (3, 16, 16)
    many = LocalTraining(1, 1, lr=0.05, momentum=0.9, weight_decay=5e-4)
    examples = random_batch(3, shape)
    plan, state = model(name, shape, density)
    if name.startswith("mobilenet"):  # its last planes are single pixels, which batch norms refuse
        shape = (3, 64, 64)
        plan, state = model(name, shape, density)
        examples = random_batch(2, shape)
    check_equal(tmp_path, plan, state, examples, bits=bits, how=many)


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.05, 0.01])
def test_vgg11(tmp_path: Path, density: float) -> None:
    shape = (3, 32, 32)
    plan, state = model("vgg11", shape, density)
    two = LocalTraining(1, 2, lr=0.05, momentum=0.9, weight_decay=5e-4)
    check_equal(tmp_path, plan, state, random_batch(4, shape), batch=2, how=two)


def test_layers_without_a_weight(tmp_path: Path) -> None:
    plan, state = model("resnet8", SMALL, 0.05)
    empty = plan.prunable[3]
    masks = {**state.masks, empty: np.zeros_like(state.masks[empty])}
    weights = {**state.weights, empty: np.zeros_like(state.weights[empty])}
    state = replace(state, masks=masks, weights=weights)
    check_equal(tmp_path, plan, state, random_batch(3, SMALL), bits=8)


def test_images_that_are_the_same_everywhere(tmp_path: Path) -> None:
    zeros = Examples(np.zeros((3, *SMALL), np.float32), np.arange(3))
    check_equal(tmp_path, *model("resnet8", SMALL, 0.1), zeros)
    check_equal(tmp_path / "few", *model("resnet8", SMALL, 0.1), zeros, bits=8)


def test_rates(tmp_path: Path) -> None:
    plain = LocalTraining(1, 1, lr=0.1, momentum=0.0, weight_decay=0.0)
    check_equal(tmp_path, *model("resnet8", SMALL, 0.1), random_batch(4, SMALL), how=plain)


class Twice(nn.Module):
    """A layer that is called twice, and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(2, 8), nn.Linear(8 * 7 * 5, 10)

    def forward(self, x: Tensor) -> Tensor:
        one = torch.relu(self.first(x))
        two = self.second(torch.relu(self.second(one)))
        found: Tensor = self.head(torch.relu(self.norm(torch.cat([one, two], 1))).flatten(1))
        return found


ODD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "features alone": (lambda: nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 10)), (7,)),
    "one layer": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), (3, 2, 2)),
    "gaps and strides": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 6, (3, 2), (2, 3), (2, 0), (2, 1), 3), nn.BatchNorm2d(6), nn.ReLU6()),
            *(nn.Conv2d(6, 4, 1, 2), nn.ReLU(), nn.MaxPool2d(2, 1, 1), nn.Flatten()),
            nn.LazyLinear(10),
        ),
        (3, 11, 13),
    ),
    "norms without parameters": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False), nn.AvgPool2d(3, 2, 1)),
            *(nn.Conv2d(5, 5, 3, groups=5), L1BatchNorm2d(5), nn.Flatten(), nn.LazyLinear(10)),
        ),
        (3, 9, 9),
    ),
    "layers called twice": (Twice, (3, 7, 5)),
    "maxima": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 5, 3, padding=1), nn.MaxPool2d((3, 2), (1, 2), 1), nn.BatchNorm2d(5)),
            *(nn.ReLU6(), nn.Conv2d(5, 7, 1), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten()),
            nn.Linear(7, 10),
        ),
        (3, 21, 19),
    ),
    "maxima before norms": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 5, 3), nn.MaxPool2d(2, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)),
        ),
        (3, 12, 14),
    ),
    "a maximum of many pixels": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d((16, 17), (1, 2))),
            *(nn.Conv2d(5, 4, 2), nn.Flatten(), nn.LazyLinear(10)),
        ),
        (3, 20, 23),
    ),
}


def odd(name: str) -> tuple[Plan, ModelState, tuple[int, ...]]:
    make, shape = ODD[name]
    torch.manual_seed(0)
    module = make()
    module(torch.zeros(2, *shape))  # lazy layers take their shapes
    engine = TorchEngine(module, cross_entropy)
    plan = capture(engine.module(engine.initial_state()), shape)
    return plan, randomly_pruned(engine.initial_state(), 0.4), shape


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("bits", [32, 8])
def test_odd_models(tmp_path: Path, name: str, bits: int) -> None:
    plan, state, shape = odd(name)
    check_equal(tmp_path, plan, state, random_batch(3, shape), bits=bits)


@pytest.mark.parametrize(("batch", "bits"), [slow((2, 32)), slow((4, 16)), (8, 4), slow((1, 4))])
def test_maxima_of_batches(tmp_path: Path, batch: int, bits: int) -> None:
    plan, state, shape = odd("maxima")
    check_equal(tmp_path, plan, state, random_batch(2 * batch, shape), batch, bits)


def nothing_kept(plan: Plan, schedule: Schedule, few: frozenset[int]) -> Schedule:
    return replace(schedule, argmax=frozenset())


@pytest.mark.parametrize(("name", "least"), [("maxima", 1.0), ("maxima before norms", 0.95)])
def test_places_of_maxima_are_kept_where_they_save_memory(
    monkeypatch: pytest.MonkeyPatch, name: str, least: float
) -> None:
    plan, state, _ = odd(name)
    kept = {bits: emit(plan, state.masks, 2, bits).arena_bytes for bits in STORED_BITS}
    monkeypatch.setattr(storage, "keeping_argmax", nothing_kept)
    searching = {bits: emit(plan, state.masks, 2, bits).arena_bytes for bits in STORED_BITS}
    assert all(kept[bits] <= least * searching[bits] for bits in STORED_BITS), (kept, searching)
