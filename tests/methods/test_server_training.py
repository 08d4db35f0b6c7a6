from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fedkit.config import RunConfig, make_config
from fedkit.engine.base import GradientSums, LocalTraining
from fedkit.engine.torch import TorchEngine
from fedkit.methods.schedule import kept_per_layer
from fedkit.methods.server_training import prune_gradually, train_dense, tune
from fedkit.sparse.masks import layer_masks
from fedkit.sparse.state import ModelState, count_kept
from fedkit.tasks.digits import TASK
from fedkit.tasks.task import Examples


class Watched(TorchEngine):
    """A real engine that remembers what it was asked to train."""

    def __init__(self) -> None:
        super().__init__(replace(TASK, model="resnet8").build_model(seed=0), TASK.loss)
        self.seen: list[tuple[dict[str, int], LocalTraining]] = []

    def train(
        self,
        state: ModelState,
        examples: Examples,
        how: LocalTraining,
        seed: int,
        gradient_sums: GradientSums | None = None,
    ) -> tuple[ModelState, float]:
        self.seen.append((count_kept(state.masks), how))
        return super().train(state, examples, how, seed, gradient_sums)


def config(**changes: Any) -> RunConfig:
    return make_config({"density": 0.05, "sparse_epochs": 10, "server_epochs": 2, **changes})


def some(count: int = 20) -> Examples:
    return TASK.train_data().take(np.arange(count))


def test_gradual_pruning_falls_along_the_cubic_curve_and_then_holds() -> None:
    engine, run = Watched(), config()
    dense = engine.initial_state()
    counts = kept_per_layer(run, engine.layout.prunable_shapes)
    state = prune_gradually(run, engine, dense, counts, some())
    assert count_kept(state.masks) == counts
    assert len(engine.seen) == 10
    for kept, following in pairwise(kept for kept, _ in engine.seen):
        assert all(following[name] <= kept[name] for name in kept)
    name = max(counts, key=lambda n: dense.masks[n].size)
    size, final = dense.masks[name].size, counts[name]
    # The curve takes its first step before the first epoch, its last one before the eighth.
    expected = [
        final + round((1 - e / 8) ** 3 * (size - final)) if e < 8 else final for e in range(1, 11)
    ]
    assert [kept[name] for kept, _ in engine.seen] == expected
    assert not any(state.weights[n][~mask].any() for n, mask in state.masks.items())


def test_the_rate_falls_over_the_epochs_and_each_has_one() -> None:
    engine, run = Watched(), config(lr=0.2, lr_final=0.05)
    tune(run, engine, engine.initial_state(), some())
    rates = [how.lr for _, how in engine.seen]
    assert rates[0] == pytest.approx(0.2) and rates[-1] == pytest.approx(0.05)
    assert rates == sorted(rates, reverse=True)
    assert {how.epochs for _, how in engine.seen} == {1}


def test_tuning_keeps_the_masks_and_learns() -> None:
    engine, run, data = Watched(), config(), some(100)
    dense = engine.initial_state()
    counts = kept_per_layer(run, engine.layout.prunable_shapes)
    pruned = dense.with_masks(layer_masks(dense.weights, counts))
    tuned = tune(run, engine, pruned, data)
    assert all((tuned.masks[name] == mask).all() for name, mask in pruned.masks.items())
    assert engine.loss(tuned, data) < engine.loss(pruned, data)


@pytest.mark.parametrize(("epochs", "examples"), [(0, some()), (10, None)])
def test_without_epochs_or_examples_weights_fall_at_once(
    epochs: int, examples: Examples | None
) -> None:
    engine, run = Watched(), config(sparse_epochs=epochs, server_epochs=epochs)
    dense = engine.initial_state()
    counts = kept_per_layer(run, engine.layout.prunable_shapes)
    at_once = prune_gradually(run, engine, dense, counts, examples)
    expected = layer_masks(dense.weights, counts)
    assert all((at_once.masks[name] == mask).all() for name, mask in expected.items())
    assert tune(run, engine, dense, examples) is dense
    assert train_dense(run, engine, dense, examples) is dense
    assert engine.seen == []


def test_statistics_are_those_of_the_servers_examples() -> None:
    engine, run, data = Watched(), config(sparse_epochs=2), some(60)
    state = tune(run, engine, engine.initial_state(), data)
    name, moments = next(iter(engine.norm_moments(state, data).items()))
    np.testing.assert_array_equal(
        state.stats[f"{name}.running_mean"], moments.mean.astype(np.float32)
    )
