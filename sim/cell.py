"""One cell of a comparison: a whole run in this process, told by its figures alone.

Cells of one seed begin with the same dense model, so a process that computes several of them trains
it once.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

from threadpoolctl import threadpool_limits

from fedkit.bench.replay import Recorded, device_memory, worth_replaying
from fedkit.config import RunConfig
from fedkit.cost import CountingEngine, positions
from fedkit.device import Device
from fedkit.flower.client_app import MESSAGE_TYPES
from fedkit.flower.wire import packet_bytes
from fedkit.messages import Packet
from fedkit.method import Phase
from fedkit.rounds import LocalFleet, dense_start, run_rounds
from fedkit.sparse.state import ModelState
from sim.scenario import Scenario, make_scenario, server_scenario

DENSE_START_KEYS = (
    "task",
    "model",
    "seed",
    "engine",
    "server_share",
    "server_epochs",
    "batch_size",
    "lr",
    "momentum",
    "weight_decay",
)
"""All of a run's configuration that its dense start depends on."""


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
    def flops(self) -> int:
        """FLOPs of all devices so far."""
        return self._engine.flops

    def exchange(self, phase: Phase, request: Packet) -> list[Packet]:
        """See `fedkit.method.Fleet.exchange`."""
        if self._worth(phase, request):
            self.recorded.append(Recorded(phase, request, self._memories[0]))
        replies = super().exchange(phase, request)
        began, kind = time.perf_counter(), MESSAGE_TYPES[phase]
        self.bytes_down += len(replies) * packet_bytes(request, kind)
        self.bytes_up += sum(packet_bytes(reply, kind) for reply in replies)
        self.seconds += time.perf_counter() - began
        return replies


def run_cell(config: RunConfig) -> dict[str, Any]:
    """Run all rounds in this process, on one thread and without a run folder.

    Returns:
        `task`, `model`, `method`, `density`, `alpha`, `seed`, `rounds` and `devices` of the
        config; `accuracy` on the test data after the last round, `accuracies` after each round
        that was measured; `density_measured`, counted from the masks; `bytes_up` and `bytes_down`
        of whole Flower messages and `train_flops` of the devices, all three summed over devices
        and rounds, with what came before them; `peak_bytes` of a process of its own in which the
        first device answers some of the messages again, and `idle_bytes` of it before; `seconds`
        of pruning and rounds with their measuring, without the dense start. Equal configs give
        equal values, but for `seconds`, `peak_bytes` and `idle_bytes`, which are measured.

    Raises:
        FedkitError: Whatever ended the run.
    """
    with threadpool_limits(1):
        scenario, dense = make_scenario(config), dense_model(config)
        fleet, accuracies = _measured_fleet(scenario), []
        began = time.perf_counter()
        for step in run_rounds(scenario.server(), fleet, scenario.server_data, dense):
            density = step.density
            if step.phase == "round" and step.accuracy is not None:
                accuracies.append(step.accuracy)
        seconds = time.perf_counter() - began - fleet.seconds
    memory = device_memory(scenario.engine, scenario.config, scenario.devices[0], fleet.recorded)
    return {
        "task": config.task,
        "model": config.model,
        "method": config.method,
        "density": config.density,
        "alpha": config.alpha,
        "seed": config.seed,
        "rounds": config.rounds,
        "devices": config.devices,
        "accuracy": accuracies[-1],
        "accuracies": accuracies,
        "density_measured": density,
        "bytes_up": fleet.bytes_up,
        "bytes_down": fleet.bytes_down,
        "train_flops": fleet.flops,
        **memory,
        "seconds": round(seconds, 3),
    }


def _measured_fleet(scenario: Scenario) -> MeasuredFleet:
    initial = scenario.engine.initial_state()
    geometry = positions(scenario.module(initial), scenario.test.inputs.shape[1:])
    engine = CountingEngine(scenario.engine, geometry)
    devices = [
        Device(index, examples, engine, scenario.config)
        for index, examples in enumerate(scenario.devices)
    ]
    return MeasuredFleet(devices, engine)


def dense_model(config: RunConfig) -> ModelState:
    """Return the dense start of a run, trained once per process for all configs that share it."""
    return _dense_model(RunConfig(**config.model_dump(include=set(DENSE_START_KEYS))))


@functools.lru_cache(maxsize=2)
def _dense_model(config: RunConfig) -> ModelState:
    scenario = server_scenario(config)
    return dense_start(scenario.server(), scenario.server_data)
