from __future__ import annotations

import pytest

from fedkit.bench.fleet import bench_fleet


@pytest.mark.slow
def test_one_message_a_round_is_quicker_and_smaller_than_three() -> None:
    result = bench_fleet(quick=True)
    merged, naive = result["rows"]
    assert (merged["phases"], naive["phases"]) == ("merged", "naive")
    for row in (merged, naive):
        assert row["devices"] == 1
        assert row["device_peak_bytes"] > row["device_idle_bytes"] > 50e6
    assert naive["bytes_per_round"] > merged["bytes_per_round"]
    # Polling alone is seconds a message: no paired timing is needed to see three against one.
    assert naive["seconds_per_round"] > 1.5 * merged["seconds_per_round"]
