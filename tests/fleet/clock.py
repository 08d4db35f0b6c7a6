"""A clock for fleets of scripted devices."""

from __future__ import annotations


class Clock:
    """Time that passes by sleeping alone, and then at once: a busy machine is late for nothing."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
