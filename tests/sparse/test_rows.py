from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedkit.sparse.rows import reduce_rows


@pytest.mark.parametrize(("how", "plain"), [(np.maximum, max), (np.add, sum)])
@settings(deadline=None)
@given(counts=st.lists(st.integers(0, 3), max_size=8), seed=st.integers(0, 2**32 - 1))
@example(counts=[0, 2, 0], seed=0)
@example(counts=[2, 0, 0], seed=0)
@example(counts=[0, 0], seed=0)
@example(counts=[], seed=0)
def test_each_row_is_reduced_alone(
    how: np.ufunc, plain: Callable[[list[float]], float], counts: list[int], seed: int
) -> None:
    values = np.random.default_rng(seed).integers(1, 100, sum(counts)).astype(np.float64)
    rest = values.tolist()
    rows = [[rest.pop(0) for _ in range(count)] for count in counts]
    expected = [plain(row) if row else 0.0 for row in rows]
    assert reduce_rows(how, values, np.array(counts, np.int64)).tolist() == expected
