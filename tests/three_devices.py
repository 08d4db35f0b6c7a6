"""Settings of a run that takes a second: three devices, three rounds, all of which adjust masks."""

from __future__ import annotations

from typing import Any

SETTINGS: dict[str, Any] = {
    "devices": 3,
    "rounds": 3,
    "epochs": 1,
    "examples_per_device": 40,
    "test_examples": 60,
    "adjust_every": 1,
    "adjust_stop": 3,
    "server_epochs": 1,
    "sparse_epochs": 1,
}
