from __future__ import annotations

import numpy as np
import pytest

from fedkit.fedtiny.bn_selection import (
    as_moments,
    as_stats,
    best_candidate,
    mean_losses,
    merge_norms,
    with_norms,
)
from fedkit.sparse.state import ModelState
from fedkit.stats.moments import Moments


def test_statistics_round_trip_as_moments() -> None:
    stats = {
        "n.running_mean": np.array([1.0, -2.0], np.float32),
        "n.running_var": np.array([0.5, 3.0], np.float32),
    }
    back = as_stats(as_moments(stats, 7))
    assert all(np.array_equal(back[name], stats[name]) for name in stats)


def test_devices_merge_layer_by_layer() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal((n, 3)) + n for n in (5, 9)]
    merged = merge_norms([{"n": Moments.of(s), "m": Moments.of(2 * s)} for s in samples], "pooled")
    pooled = np.concatenate(samples)
    np.testing.assert_allclose(merged["n"].variance, pooled.var(axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged["m"].mean, 2 * pooled.mean(axis=0), rtol=1e-12)


def test_losses_are_weighted_by_examples_and_the_first_wins_a_tie() -> None:
    losses = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    assert mean_losses(losses, [3, 1]).tolist() == pytest.approx([0.75, 0.25, 0.25])
    assert best_candidate(mean_losses(losses, [3, 1])) == 1
    assert best_candidate(mean_losses(losses, [1, 3])) == 0


def test_a_candidate_takes_over_the_merged_statistics() -> None:
    old = {"n.running_mean": np.zeros(1, np.float32), "n.running_var": np.ones(1, np.float32)}
    state = ModelState({"w": np.ones(1, np.float32)}, old, {})
    moments = Moments(4, np.array([2.0]), np.array([12.0]))
    new = with_norms(state, {"n": moments})
    assert new.stats["n.running_mean"] == 2 and new.stats["n.running_var"] == 3
    assert state.stats["n.running_mean"] == 0
