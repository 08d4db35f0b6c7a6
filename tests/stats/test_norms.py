from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkit.sparse.state import ModelState, Weights
from fedkit.stats.moments import Moments
from fedkit.stats.norms import (
    absolute_stats,
    as_moments,
    as_stats,
    best_candidate,
    merge_losses,
    merge_norms,
    relative_stats,
    with_norms,
)


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
    assert merge_losses(losses, [3, 1]).tolist() == pytest.approx([0.75, 0.25, 0.25])
    assert best_candidate(merge_losses(losses, [3, 1])) == 1
    assert best_candidate(merge_losses(losses, [1, 3])) == 0


def test_a_candidate_takes_over_the_merged_statistics() -> None:
    old = {"n.running_mean": np.zeros(1, np.float32), "n.running_var": np.ones(1, np.float32)}
    state = ModelState({"w": np.ones(1, np.float32)}, old, {})
    moments = Moments(4, np.array([2.0]), np.array([12.0]))
    new = with_norms(state, {"n": moments})
    assert new.stats["n.running_mean"] == 2 and new.stats["n.running_var"] == 3
    assert state.stats["n.running_mean"] == 0


def some_stats(seed: int, scale: float = 1.0) -> Weights:
    """Statistics of two norms; channels of very different spread, one of none."""
    rng = np.random.default_rng(seed)
    stats = {}
    for name in ("n", "m.norm"):
        mean, variance = rng.standard_normal(5), rng.lognormal(0, 2, 5)
        variance[seed % 5] = 0
        stats[f"{name}.running_mean"] = (scale * mean).astype(np.float32)
        stats[f"{name}.running_var"] = (scale**2 * variance).astype(np.float32)
    return stats


@given(st.integers(0, 999), st.integers(0, 999), st.sampled_from([1e-3, 1.0, 1e3]))
def test_relative_statistics_lead_back(seed: int, other: int, scale: float) -> None:
    stats, base = some_stats(seed, scale), some_stats(other, scale)
    back = absolute_stats(relative_stats(stats, base), base)
    assert list(back) == list(stats)
    for name, value in stats.items():
        assert back[name].dtype == np.float32
        # Differences lose what float32 cannot hold beside the larger of both statistics.
        largest = max(np.abs(value).max(), np.abs(base[name]).max())
        np.testing.assert_allclose(back[name], value, rtol=1e-4, atol=1e-4 * largest)


def test_equal_statistics_differ_by_exactly_nothing() -> None:
    stats = some_stats(3)
    relative = relative_stats(stats, stats)
    assert not any(value.any() for value in relative.values())
    back = absolute_stats(relative, stats)
    for name, value in stats.items():
        np.testing.assert_allclose(back[name], value, rtol=1e-7, atol=1e-12)


def test_relative_statistics_are_in_units_of_the_channel() -> None:
    base = {"n.running_mean": np.zeros(2, np.float32), "n.running_var": np.ones(2, np.float32)}
    for factor in (1.0, 100.0):
        larger = {
            "n.running_mean": np.array([0, 3 * factor], np.float32),
            "n.running_var": np.array([4, 4 * factor**2], np.float32),
        }
        of = {**base, "n.running_var": np.array([1, factor**2], np.float32)}
        relative = relative_stats(larger, of)
        np.testing.assert_allclose(relative["n.running_var"], [2, 2], rtol=1e-4)
        np.testing.assert_allclose(relative["n.running_mean"], [0, 3 / 5**0.5], rtol=1e-4)


def test_relative_statistics_beyond_float32_come_back_infinite() -> None:
    base = some_stats(0)
    beyond = {name: np.full_like(value, 3e38) for name, value in base.items()}
    back = absolute_stats(beyond, base)
    assert all(np.isinf(value).all() for value in back.values())
