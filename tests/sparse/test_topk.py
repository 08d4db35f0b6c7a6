from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkit.errors import WireError
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
