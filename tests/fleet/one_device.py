"""A fleet of one device that trains next to nothing."""

from __future__ import annotations

from typing import Any

CONFIG: dict[str, Any] = {
    "devices": 1,
    "partition": "iid",
    "examples_per_device": 24,
    "test_examples": 20,
    "selection": "none",
    "rounds": 1,
    "epochs": 1,
    "server_epochs": 0,
    "sparse_epochs": 0,
}
