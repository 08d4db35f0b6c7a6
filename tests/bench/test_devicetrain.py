"""Training on an emulated Cortex-A53: compared first, then counted."""

from __future__ import annotations

from typing import Any

import pytest

from fedkit.bench import devicetrain
from fedkit.core.errors import BenchError
from tests.edge.targets.c99.library import need_emulator


@pytest.fixture(autouse=True)
def _tools() -> None:
    need_emulator()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_sparse_steps_take_fewer_instructions_and_the_same_each_time(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devicetrain, "_SHAPE", (3, 4, 4))
    first, *again = (devicetrain.bench_devicetrain(quick=True)["rows"] for _ in range(times))
    assert all(rows == first for rows in again)
    for dense, sparse in (first[:2], first[2:]):
        assert dense["ratio_dense"] == 1 and sparse["ratio_dense"] > 2
    assert first[0]["peak_bytes"] > first[1]["peak_bytes"] > 0


@pytest.mark.slow
def test_another_result_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    step, engines = devicetrain._step, []

    def planted(engine: Any, *arguments: Any) -> Any:
        weights = step(engine, *arguments)
        engines.append(engine)
        if len(engines) == 1:  # the emulated one goes first
            name = next(iter(weights))
            weights = {**weights, name: weights[name] + 1}
        return weights

    monkeypatch.setattr(devicetrain, "_SHAPE", (3, 4, 4))
    monkeypatch.setattr(devicetrain, "_step", planted)
    with pytest.raises(BenchError, match=r"trains .* differently at 32 bits"):
        devicetrain.bench_devicetrain(quick=True)
