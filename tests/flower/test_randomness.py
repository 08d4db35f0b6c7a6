"""Flower's heartbeat is a thread that draws random numbers."""

from __future__ import annotations

import random
import sys
import threading

import pytest
from flwr.supercore.heartbeat import HeartbeatSender

from fedkit.flower.randomness import draw_apart
from tests.processes import HANG


def draws_with_a_heartbeat() -> bool:
    """Return whether Python's global generator moves while Flower sends a heartbeat."""
    called, before = threading.Event(), random.getstate()
    sender = HeartbeatSender(lambda: called.set() or True)  # type: ignore[func-returns-value]
    sender.start()
    assert called.wait(HANG)
    sender.stop()
    return random.getstate() != before


@pytest.fixture
def as_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower draws as it does before any app of ours is made, and after the test as before it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("flwr.") and isinstance(vars(module).get("random"), random.Random):
            monkeypatch.setattr(module, "random", random)


@pytest.mark.usefixtures("as_imported")
def test_heartbeats_do_not_move_the_generator_of_people() -> None:
    assert draws_with_a_heartbeat()
    draw_apart()
    assert not draws_with_a_heartbeat()
    draw_apart()
    assert not draws_with_a_heartbeat()
