"""Training on emulated processors: compared first, then counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedkit.bench import devicetrain
from fedkit.bench.microcontroller import EmulatedStep, EmulatedTrainer, compare
from fedkit.bench.sparsetrain import random_batch
from fedkit.core.errors import BenchError
from fedkit.engine.base import LocalTraining
from tests.edge.targets.c99.library import need_emulator
from tests.trainer.compiled import model


@pytest.fixture(autouse=True)
def _tools() -> None:
    need_emulator()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_sparse_steps_take_fewer_instructions_and_the_same_each_time(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devicetrain, "_SHAPE", (3, 4, 4))
    monkeypatch.setattr(devicetrain, "_TRAINED", (("resnet8", (3, 8, 8)),))
    first, *again = (devicetrain.bench_devicetrain(quick=True)["rows"] for _ in range(times))
    assert all(rows == first for rows in again)
    for dense, sparse in (first[:2], first[2:4]):
        assert dense["ratio_dense"] == 1 and sparse["ratio_dense"] > 2
    assert first[0]["peak_bytes"] > first[1]["peak_bytes"] > 0
    assert [row["target"] for row in first[4:]] == ["cortex-m7", "cortex-m4"]
    assert all(row["differing"] == 0 < row["compared"] for row in first[4:])


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


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m7"])
@pytest.mark.parametrize("density", [1.0, 0.05])
@pytest.mark.parametrize("bits", [32, 8])
def test_a_trainer_gives_the_engines_bits(target: str, density: float, bits: int) -> None:
    shape = (3, 9, 7)
    plan, state = model("resnet8", shape, density)
    how = LocalTraining(1, 1, lr=0.05, momentum=0.9, weight_decay=5e-4)
    found = compare(plan, state, random_batch(3, shape), how, bits, target)
    assert found.differing == 0
    assert found.compared > 1000
    assert 0 < found.stack_bytes < 4096


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "most"), [
    ("resnet8", (3, 32, 32), 512 * 1024), ("ds-cnn", (1, 49, 10), 256 * 1024)
])  # fmt: skip
def test_a_trainer_fits(name: str, shape: tuple[int, ...], most: int) -> None:
    plan, state = model(name, shape, 0.05)
    how = LocalTraining(1, 1, lr=0.05, momentum=0.9, weight_decay=5e-4)
    found = compare(plan, state, random_batch(2, shape), how, 8, "cortex-m7")
    assert found.differing == 0
    assert found.ram_bytes + found.stack_bytes <= most


@pytest.mark.slow
def test_a_trainer_that_differs_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    step = EmulatedTrainer.step

    def planted(trainer: EmulatedTrainer, *arguments: Any) -> EmulatedStep:
        found = step(trainer, *arguments)
        return replace(found, values=found.values + np.float32(1))

    monkeypatch.setattr(EmulatedTrainer, "step", planted)
    monkeypatch.setattr(devicetrain, "_TRAINED", (("resnet8", (3, 8, 8)),))
    with pytest.raises(BenchError, match=r"trainer in C gives .* differently on cortex-m7"):
        devicetrain._microcontrollers(quick=True)
