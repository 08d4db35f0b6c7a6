"""A fleet that knows what its devices pay, for whole comparisons and for `fedkit bench cost`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fedkit.bench.replay import Recorded, worth_replaying
from fedkit.device.round import Device
from fedkit.engine.flops import CountingEngine
from fedkit.flower.client_app import MESSAGE_TYPES
from fedkit.flower.wire import packet_bytes
from fedkit.methods.interface import Phase
from fedkit.server.rounds import LocalFleet
from fedkit.wire.messages import Packet


@dataclass(frozen=True)
class DeviceCost:
    """What devices pay: FLOPs, and bytes both ways."""

    flops: int
    bytes: int

    def __add__(self, other: DeviceCost) -> DeviceCost:
        return DeviceCost(self.flops + other.flops, self.bytes + other.bytes)


class MeasuredFleet(LocalFleet):
    """A fleet in this process that knows what its devices pay.

    Args:
        devices: The devices.
        engine: What they share; it counts.

    Attributes:
        bytes_down: Bytes of all requests so far as whole Flower messages, one per device.
        bytes_up: Bytes of all replies.
        recorded: Messages to the first device, for a replay in a process of its own.
        seconds: What counting the bytes took.
    """

    def __init__(self, devices: Sequence[Device], engine: CountingEngine) -> None:
        super().__init__(devices)
        self._engine, self._worth = engine, worth_replaying(devices[0].config)
        self.bytes_down = self.bytes_up = 0
        self.recorded: list[Recorded] = []
        self.seconds = 0.0

    @property
    def paid(self) -> DeviceCost:
        """What all devices paid so far."""
        return DeviceCost(self._engine.flops, self.bytes_down + self.bytes_up)

    def paid_since(self, before: DeviceCost) -> DeviceCost:
        """Return what all devices paid since then."""
        return DeviceCost(self.paid.flops - before.flops, self.paid.bytes - before.bytes)

    def answers(self, phase: Phase, request: Packet, asked: Sequence[int]) -> list[Packet]:
        """See `LocalFleet.answers`."""
        if self._worth(phase, request):
            self.recorded.append(Recorded(phase, request, self.memory(0)))
        replies = super().answers(phase, request, asked)
        began, kind = time.perf_counter(), MESSAGE_TYPES[phase]
        self.bytes_down += len(replies) * packet_bytes(request, kind)
        self.bytes_up += sum(packet_bytes(reply, kind) for reply in replies)
        self.seconds += time.perf_counter() - began
        return replies
