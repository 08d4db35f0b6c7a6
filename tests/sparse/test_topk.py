from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkit.core.errors import WireError
from fedkit.sparse.topk import StreamingTopK, largest
from tests.naive.sparse import dense_topk

# Few distinct magnitudes, so that ties are the rule.
TIED = st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]), max_size=60)
ANY = st.lists(st.floats(-1e6, 1e6, width=32), max_size=60)


@given(TIED | ANY, st.integers(0, 70), st.integers(1, 20))
def test_streaming_equals_dense_whatever_the_tiles(
    values: list[float], count: int, tile: int
) -> None:
    array = np.array(values, np.float32)
    top = StreamingTopK(count)
    for start in range(0, len(array), tile):
        part = array[start : start + tile]
        top.push(np.arange(start, start + len(part)), part)
    expected = dense_topk(array, count)
    assert top.entries().indices.tolist() == expected
    assert top.entries().values.tolist() == array[expected].tolist()


@given(TIED | ANY, st.integers(0, 70))
def test_largest_equals_sorting(values: list[float], count: int) -> None:
    array = np.array(values, np.float32)
    assert largest(array, count).tolist() == dense_topk(array, count)


def test_memory_stays_within_capacity_and_tile() -> None:
    top = StreamingTopK(5)
    rng = np.random.default_rng(0)
    for start in range(0, 10_000, 100):
        top.push(np.arange(start, start + 100), rng.standard_normal(100).astype(np.float32))
        assert len(top.entries().values) == 5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_without_order_are_refused(bad: float) -> None:
    with pytest.raises(WireError, match="NaN or infinite"):
        StreamingTopK(1).push(np.array([0]), np.array([bad], np.float32))


ODD = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -3e38, math.inf, -math.inf])


@given(st.lists(st.one_of(ODD, st.floats(width=32, allow_nan=False)), max_size=12), st.data())
def test_the_largest_are_those_of_a_sort_whatever_the_values(
    values: list[float], data: st.DataObject
) -> None:
    """Signs do not count, equal magnitudes go by position; none, some or all are asked for."""
    count = data.draw(st.integers(0, len(values) + 2))
    by_size = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    assert largest(np.array(values, np.float32), count).tolist() == sorted(by_size[:count])


@pytest.mark.parametrize("count", [1, 2])
def test_values_without_an_order_are_refused(count: int) -> None:
    with pytest.raises(WireError, match="1 of 3 values are NaN"):
        largest(np.array([1, np.nan, 2], np.float32), count)


def test_magnitudes_and_not_values_are_compared_whole_and_in_tiles() -> None:
    values = np.array([0.25, -7, 6, -0.5, 6.5, -6.75, 0], np.float32)
    top = StreamingTopK(3)
    for start in range(0, len(values), 2):
        tile = values[start : start + 2]
        top.push(np.arange(start, start + len(tile)), tile)
    assert top.entries().indices.tolist() == largest(values, 3).tolist() == [1, 4, 5]
    assert top.entries().values.tolist() == [-7, 6.5, -6.75]
