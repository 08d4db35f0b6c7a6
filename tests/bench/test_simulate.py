"""Simulations are measured side by side, and only if they did the same work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedkit.bench import simulate
from fedkit.bench.simulate_child import RUNNERS
from fedkit.bench.simulate_task import DEVICES, PER_DEVICE, share, task, train_data
from fedkit.core.errors import BenchError


def model(moved: float) -> dict[str, Any]:
    """The model at the start, with every weight moved."""
    weights = task.build_model(1, "").named_parameters()
    return {name: value.detach().numpy() + moved for name, value in weights}


def row(runner: str, seconds: float) -> dict[str, Any]:
    return {"runner": runner, "seconds_per_round": seconds}


def test_ratios_are_to_the_stock_runner() -> None:
    measured = [(row("stock-flower-ray", 3.0), model(1.0)), (row("other", 0.2), model(1.01))]
    rows = simulate._compared(measured)
    assert [each["rounds_per_second_ratio_stock"] for each in rows] == [1.0, 15.0]
    alone = simulate._compared([(row("fedkit-flower", 0.2), model(1.0))])
    assert alone[0]["rounds_per_second_ratio_stock"] is None


def test_a_model_that_ends_elsewhere_is_an_error() -> None:
    measured = [(row("stock-flower-ray", 3.0), model(1.0)), (row("other", 0.2), model(1.1))]
    with pytest.raises(BenchError, match="the model of other is 10% away from that of stock"):
        simulate._compared(measured)


def test_devices_of_all_runners_hold_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICES, "3")
    train_data.cache_clear()
    everything = train_data()
    assert everything.owners is not None and len(everything) == 3 * PER_DEVICE
    for device in range(3):
        held = everything.take(np.flatnonzero(everything.owners == device))
        assert np.array_equal(held.inputs, share(device).inputs)
        assert np.array_equal(held.targets, share(device).targets)
    train_data.cache_clear()


def test_a_simulation_that_fails_says_why() -> None:
    cell = {"devices": 2, "per_round": 2, "rounds": 0, "workers": 1}
    with pytest.raises(BenchError, match=r"(?s)after 0 of 0 rounds \(exit.*rounds is 0"):
        simulate._row("fedkit-process", cell)


@pytest.mark.slow
def test_every_runner_does_the_same_work() -> None:
    result = simulate.bench_simulate(quick=True)
    assert [each["runner"] for each in result["rows"][:4]] == list(RUNNERS)
    for each in result["rows"]:
        assert each["seconds_to_first_round"] > each["seconds_per_round"] > 0
        assert each["peak_bytes"] > 1e8
    assert len(simulate.table(result)) == 2 + len(result["rows"])
