"""Runs in which a schedule says who takes part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedkit.config import RunConfig, make_config
from fedkit.methods.interface import Answer, Phase, Request
from fedkit.server.rounds import Report, run_rounds
from fedkit.server.scenario import Scenario
from fedkit.wire.messages import Packet

SMALL: dict[str, Any] = {
    "devices": 3,
    "rounds": 5,
    "epochs": 1,
    "examples_per_device": 30,
    "test_examples": 50,
    "adjust_every": 1,
    "adjust_stop": 4,
    "server_epochs": 1,
    "sparse_epochs": 2,
    "min_share": 0.5,
    "deadline": 0.5,
}


class Partial:
    """The slow reference: devices in this process, of which a schedule says who takes part."""

    def __init__(self, scenario: Scenario, absent: dict[int, set[int]]) -> None:
        self._devices = [scenario.device(index) for index in range(len(scenario.devices))]
        self._memories, self._absent = [Packet({})] * len(self._devices), absent
        self._last, self.traffic = set[int](), (0, 0)

    def choose(self, order: Sequence[int], count: int, spare: int = 0) -> None:
        """Ask every device all the same."""

    def exchange(
        self, phase: Phase, request: Request, read: Callable[[Packet], Answer]
    ) -> list[Answer]:
        number = request.whole().numbers.get("round", 0)
        absent = self._absent.get(number if isinstance(number, int) else 0, set())
        present = [index for index in range(len(self._devices)) if index not in absent]
        answers = []
        for index in present:
            short = request.short if index in self._last else None
            packet = request.whole() if short is None else short
            reply, self._memories[index] = self._devices[index].handle(
                phase, packet, self._memories[index]
            )
            answers.append(read(reply))
        self._last = set(present)
        return answers


def config(**changes: Any) -> RunConfig:
    return make_config({**SMALL, **changes})


def run(scenario: Scenario, fleet: Any) -> list[Report]:
    return list(run_rounds(scenario.server(), fleet, scenario.server_data))
