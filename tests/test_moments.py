from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.stats.moments import Moments, merge

PARTS = st.lists(st.integers(1, 50), min_size=1, max_size=8)


def parts_of(sizes: list[int], seed: int, offset: float) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return [offset * rng.standard_normal() + rng.standard_normal((n, 4)) for n in sizes]


@given(PARTS, st.integers(0, 999), st.sampled_from([0.0, 1.0, 1e3]))
def test_merged_moments_are_pooled_moments(sizes: list[int], seed: int, offset: float) -> None:
    parts = parts_of(sizes, seed, offset)
    merged, pooled = merge([Moments.of(p) for p in parts]), Moments.of(np.concatenate(parts))
    assert merged.n == pooled.n
    np.testing.assert_allclose(merged.mean, pooled.mean, rtol=1e-12, atol=1e-12)
    scale = 1 + np.abs(pooled.variance).max()
    np.testing.assert_allclose(merged.variance, pooled.variance, rtol=1e-12, atol=1e-12 * scale)


@given(PARTS, st.integers(0, 999))
def test_the_papers_rule_misses_the_spread_of_the_means(sizes: list[int], seed: int) -> None:
    moments = [Moments.of(p) for p in parts_of(sizes, seed, 3.0)]
    averaged, pooled = merge(moments, "paper"), merge(moments, "pooled")
    np.testing.assert_array_equal(averaged.mean, pooled.mean)
    assert (averaged.variance <= pooled.variance + 1e-12).all()
    expected = np.average([m.variance for m in moments], axis=0, weights=sizes)
    np.testing.assert_allclose(averaged.variance, expected, rtol=1e-12)


def test_a_variance_round_trips() -> None:
    moments = Moments.from_variance(5, np.array([1.0]), np.array([4.0]))
    assert moments.variance.tolist() == [4.0]
    assert (moments + Moments(0, np.zeros(1), np.zeros(1))).mean == pytest.approx(1.0)
