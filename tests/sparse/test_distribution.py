from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkit.core.errors import ConfigError
from fedkit.sparse.distribution import DISTRIBUTIONS, erk, kept_counts, uniform, with_noise

SHAPES = {"stem": (16, 3, 3, 3), "body": (64, 32, 3, 3), "head": (10, 64)}
TOTAL = sum(math.prod(shape) for shape in SHAPES.values())


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8),
    st.integers(2**46, 2**53).map(lambda n: n / 2**53),
    st.integers(0, 99),
    st.sampled_from(sorted(DISTRIBUTIONS)),
)
def test_the_budget_is_met_exactly_and_no_layer_dies(
    shapes: list[tuple[int, int]], density: float, seed: int, distribution: str
) -> None:
    layers = {str(i): shape for i, shape in enumerate(shapes)}
    total = sum(math.prod(shape) for shape in shapes)
    relative = with_noise(DISTRIBUTIONS[distribution](layers), 0.5, np.random.default_rng(seed))
    budget = math.floor(Fraction(density) * total)
    if budget < len(layers):
        with pytest.raises(ConfigError, match="raise density"):
            kept_counts(layers, density, relative)
        return
    counts = kept_counts(layers, density, relative)
    assert sum(counts.values()) == budget
    assert all(1 <= counts[name] <= math.prod(shape) for name, shape in layers.items())


def test_uniform_keeps_the_same_share_everywhere() -> None:
    counts = kept_counts(SHAPES, 0.25, uniform(SHAPES))
    for name, shape in SHAPES.items():
        assert abs(counts[name] - 0.25 * math.prod(shape)) <= 1


def test_erk_keeps_small_layers_denser() -> None:
    counts = kept_counts(SHAPES, 0.1, erk(SHAPES))
    share = {name: counts[name] / math.prod(shape) for name, shape in SHAPES.items()}
    assert share["head"] > share["stem"] > share["body"]


def test_exempt_layers_stay_whole_and_count_in_the_budget() -> None:
    counts = kept_counts(SHAPES, 0.1, uniform(SHAPES), ("first", "head"))
    assert counts["stem"] == 432 and counts["head"] == 640
    assert sum(counts.values()) == int(0.1 * TOTAL)


def test_exemptions_beyond_the_budget_and_unknown_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="exempt less"):
        kept_counts(SHAPES, 0.01, uniform(SHAPES), ("first",))
    with pytest.raises(ConfigError, match=r"unknown layers \['tail'\]"):
        kept_counts(SHAPES, 0.1, uniform(SHAPES), ("tail",))


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    st.fractions(0, 1, max_denominator=50),
    st.sampled_from(sorted(DISTRIBUTIONS)),
)
def test_each_layer_gets_its_exact_share_or_one_less_or_more(
    shapes: list[tuple[int, int]], share: Fraction, distribution: str
) -> None:
    """No scale is searched for here: what two layers that are not clipped get is proportional."""
    layers = {str(i): shape for i, shape in enumerate(shapes)}
    total, relative = sum(math.prod(s) for s in shapes), DISTRIBUTIONS[distribution](layers)
    budget = math.floor(share * total)
    if budget < len(layers):
        return
    counts = kept_counts(layers, float(share), relative)
    assert sum(counts.values()) == budget
    inner = {n for n, s in layers.items() if 1 < counts[n] < math.prod(s)}
    scales = [
        ((counts[n] - 1) / w, (counts[n] + 1) / w)
        for n in inner
        for w in [relative[n] * math.prod(layers[n])]
    ]
    assert not scales or max(low for low, _ in scales) < min(high for _, high in scales)


def test_equal_remainders_go_to_the_lower_layers() -> None:
    """The ideal is 1,036.8, 2,073.6, 33,177.6 and 6,912.0: two are left, the third is a tie."""
    layers = {"a": (1152,), "b": (2304,), "c": (36864,), "d": (7680,)}
    counts = kept_counts(layers, 0.9, uniform(layers))
    assert counts == {"a": 1037, "b": 2074, "c": 33177, "d": 6912}


def test_a_whole_ideal_is_met_whatever_the_size() -> None:
    layers = {str(i): (n,) for i, n in enumerate((10**9, 10**8 + 30, 90))}
    assert kept_counts(layers, 0.7, uniform(layers)) == {
        "0": 7 * 10**8,
        "1": 7 * 10**7 + 21,
        "2": 63,
    }
