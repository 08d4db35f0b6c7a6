"""A fleet that records what is exchanged."""

from __future__ import annotations

from collections.abc import Sequence

from fedkit.methods.interface import Phase
from fedkit.server.rounds import LocalFleet
from fedkit.wire.messages import Packet


class RecordingFleet(LocalFleet):
    """Keeps every packet that went over the wire."""

    def __init__(self, local: LocalFleet) -> None:
        super().__init__(local._devices)
        self.log: list[tuple[Phase, Packet, list[Packet]]] = []

    def answers(self, phase: Phase, request: Packet, asked: Sequence[int]) -> list[Packet]:
        replies = super().answers(phase, request, asked)
        self.log.append((phase, request, replies))
        return replies
