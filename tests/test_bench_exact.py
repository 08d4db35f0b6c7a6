"""The benchmark of exactness: rows hold what they promise, and no integer differs."""

from __future__ import annotations

import pytest

from fedkit.bench.exact import Cell, run
from tests.edge.kernels.library import need_gcc


@pytest.mark.slow
def test_rows_of_exactness_have_all_figures() -> None:
    need_gcc()
    rows = run(Cell("resnet8", 0.02, 300, 20))["rows"]
    assert len(rows) >= 6 and len({row["runtime"] for row in rows}) == len(rows)
    for row in rows:
        assert (row["mismatches"], row["examples"], row["same_class"]) == (0, 20, 1)
        assert row["parameters_slim"] < row["parameters"] and row["macs_slim"] < row["macs"]
        assert {"accuracy_float", "accuracy_int8", "accuracy_int6", "accuracy_int4"} <= set(row)
    assert rows[0]["activations"] > 10
