from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkit.errors import ConfigError
from fedkit.sparse.distribution import DISTRIBUTIONS, erk, kept_counts, uniform, with_noise

SHAPES = {"stem": (16, 3, 3, 3), "body": (64, 32, 3, 3), "head": (10, 64)}
TOTAL = sum(math.prod(shape) for shape in SHAPES.values())


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8),
    st.floats(0.01, 1),
    st.integers(0, 99),
    st.sampled_from(sorted(DISTRIBUTIONS)),
)
def test_the_budget_is_met_exactly_and_no_layer_dies(
    shapes: list[tuple[int, int]], density: float, seed: int, distribution: str
) -> None:
    layers = {str(i): shape for i, shape in enumerate(shapes)}
    total = sum(math.prod(shape) for shape in shapes)
    relative = with_noise(DISTRIBUTIONS[distribution](layers), 0.5, np.random.default_rng(seed))
    if int(density * total + 1e-9) < len(layers):
        with pytest.raises(ConfigError, match="raise density"):
            kept_counts(layers, density, relative)
        return
    counts = kept_counts(layers, density, relative)
    assert sum(counts.values()) == int(density * total + 1e-9)
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
