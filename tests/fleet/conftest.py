"""Tests of a fleet's server act as a task of Flower's, and need not wait for replies."""

from __future__ import annotations

import pytest
from flwr.supercore.task_identity import TaskIdentity

from tests.fleet.clock import Clock


@pytest.fixture(autouse=True)
def task_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of fleets in this process, whose devices are scripted."""
    made = Clock()
    monkeypatch.setattr("fedkit.flower.fleet.time", made)
    return made
