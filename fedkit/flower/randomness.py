"""Flower's random numbers, kept apart from those of the people who use it."""

from __future__ import annotations

import random
import sys


def draw_apart() -> None:
    """Let Flower draw its random waits from a generator of its own.

    Its heartbeat is a thread that draws from Python's global generator every 20 s. In the middle of
    a training step whose model draws there too, it would make the step depend on the clock.
    """
    own = random.Random()
    for name, module in list(sys.modules.items()):
        if name.startswith("flwr.") and vars(module).get("random") is random:
            vars(module)["random"] = own
