"""A fleet so small that a whole run takes a tenth of a second."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from fedkit.config import RunConfig, make_config
from fedkit.core.errors import FedkitError, WireError
from fedkit.device.round import Device
from fedkit.engine.torch import TorchEngine
from fedkit.methods.interface import Answer, Phase, Request
from fedkit.methods.registry import resolve
from fedkit.server.rounds import Server
from fedkit.tasks.task import Examples, Task
from fedkit.wire.messages import Packet

KEYS: dict[str, Any] = {
    "devices": 3,
    "rounds": 3,
    "epochs": 2,
    "batch_size": 8,
    "pool_size": 3,
    "density": 0.3,
    "adjust_every": 1,
    "adjust_stop": 3,
    "adjust_examples": 8,
    "server_epochs": 1,
    "sparse_epochs": 1,
    "min_share": 0.3,
}
CLASSES = 3


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, CLASSES),
    )


def examples(count: int, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % CLASSES
    inputs = rng.standard_normal((count, 1, 4, 4)) + targets[:, None, None, None]
    return Examples(inputs.astype(np.float32), targets)


TASK = Task("tiny", model, lambda: examples(60, 0), lambda: examples(30, 1))


@functools.cache
def engine() -> TorchEngine:
    return TorchEngine.for_task(TASK, "", 1)


def config(**changes: Any) -> RunConfig:
    return resolve(make_config({**KEYS, **changes}))


def server(run: RunConfig) -> Server:
    return Server(run, TASK, engine(), TASK.test_data())


def devices(run: RunConfig) -> list[Device]:
    return [Device(i, examples(12 + i, 10 + i), engine(), run) for i in range(run.devices)]


SERVER_DATA = examples(12, 5)


class FaultyFleet:
    """Devices in this process, of which a device that fails or is refused is left out, and told.

    Args:
        devices: All of them.
        change: Given the number of the exchange, the device and its reply; returns what travels.

    Attributes:
        refused: Exchange, device and reason of each refusal.
        failed: The same of devices that could not answer.
        exchanges: The phases so far.
    """

    def __init__(
        self,
        devices: list[Device],
        change: Callable[[int, int, Packet], Packet] = lambda number, device, reply: reply,
    ) -> None:
        self._devices, self._change = devices, change
        self._memories, self._last = [Packet({})] * len(devices), set[int]()
        self.traffic = (0, 0)
        self.refused: list[tuple[int, int, str]] = []
        self.failed: list[tuple[int, int, str]] = []
        self.exchanges: list[Phase] = []

    def choose(self, order: Sequence[int], count: int, spare: int = 0) -> None:
        """Ask every device all the same."""

    def exchange(
        self, phase: Phase, request: Request, read: Callable[[Packet], Answer]
    ) -> list[Answer]:
        number, answers, present = len(self.exchanges), [], set[int]()
        self.exchanges.append(phase)
        for device in self._devices:
            short = request.short if device.index in self._last else None
            packet = request.whole() if short is None else short
            memory = self._memories[device.index]
            try:
                reply, self._memories[device.index] = device.handle(phase, packet, memory)
            except FedkitError as error:
                self.failed.append((number, device.index, str(error)))
                continue
            try:
                answers.append(read(self._change(number, device.index, reply)))
                present.add(device.index)
            except WireError as error:
                self.refused.append((number, device.index, str(error)))
        self._last = present
        return answers
