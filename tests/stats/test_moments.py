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


@given(st.integers(0, 999))
def test_absolute_deviations_average_around_one_mean(seed: int) -> None:
    parts = parts_of([7, 20, 3], seed, 3.0)
    everything = np.concatenate(parts)
    mean = everything.mean(axis=0)

    def around(samples: NDArray[np.float64]) -> Moments:
        deviation = np.sqrt(np.pi / 2) * np.abs(samples - mean).mean(axis=0)
        return Moments.from_variance(len(samples), samples.mean(axis=0), deviation**2)

    merged, right = merge([around(part) for part in parts], "absolute"), around(everything)
    np.testing.assert_allclose(merged.variance, right.variance, rtol=1e-12)
    np.testing.assert_allclose(merged.mean, mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 0.5, 3.0, 1e6])
def test_absolute_deviations_of_normal_parts_fold_around_the_common_mean(offset: float) -> None:
    rng = np.random.default_rng(1)
    parts = [sign * offset + rng.standard_normal((200_000, 1)) for sign in (1, -1)]

    def own(samples: NDArray[np.float64]) -> Moments:
        mean = samples.mean(axis=0)
        deviation = np.sqrt(np.pi / 2) * np.abs(samples - mean).mean(axis=0)
        return Moments.from_variance(len(samples), mean, deviation**2)

    merged, right = merge([own(part) for part in parts], "folded"), own(np.concatenate(parts))
    np.testing.assert_allclose(merged.variance, right.variance, rtol=1e-2)


def test_parts_without_any_spread_fold_to_the_spread_of_their_means() -> None:
    parts = [Moments(1, np.array([value]), np.zeros(1)) for value in (-1.0, 1.0)]
    assert merge(parts, "folded").variance == pytest.approx([np.pi / 2])
    assert merge(parts[:1] * 2, "folded").variance.tolist() == [0.0]


def test_a_variance_round_trips() -> None:
    moments = Moments.from_variance(5, np.array([1.0]), np.array([4.0]))
    assert moments.variance.tolist() == [4.0]
    assert (moments + Moments(0, np.zeros(1), np.zeros(1))).mean == pytest.approx(1.0)
