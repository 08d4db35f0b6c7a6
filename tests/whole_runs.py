"""Short runs, and the bits that they end with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedkit.config import make_config
from fedkit.server.checkpoint import RunFolder
from fedkit.server.record import record
from fedkit.server.scenario import with_model_named
from sim.scenario import make_scenario

KEYS: dict[str, Any] = {
    "devices": 2,
    "rounds": 12,
    "epochs": 1,
    "examples_per_device": 40,
    "test_examples": 100,
    "adjust_every": 1,
    "adjust_stop": 10,
    "server_epochs": 1,
    "sparse_epochs": 1,
}


def flags(keys: dict[str, Any]) -> list[str]:
    return [f"--{key.replace('_', '-')}={value}" for key, value in keys.items()]


def state(folder: Path) -> bytes:
    """The bits of a run's last model."""
    found = RunFolder.open(folder).load().state
    values = (*found.weights.values(), *found.stats.values(), *found.masks.values())
    return b"".join(array.tobytes() for array in values)


def whole_run(path: Path, keys: dict[str, Any]) -> bytes:
    """The bits that an uninterrupted run ends with."""
    scenario = make_scenario(with_model_named(make_config(keys)))
    record(scenario, scenario.local_fleet(), path, lambda step: None)
    return state(path)
