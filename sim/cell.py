"""One cell of a comparison: a whole run in this process, told by its figures alone.

Cells of one seed begin with the same dense model, so a process that computes several of them trains
it once.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from threadpoolctl import threadpool_limits

from fedkit.config import RunConfig
from fedkit.device import Phase
from fedkit.flower.client_app import MESSAGE_TYPES
from fedkit.flower.wire import packet_bytes
from fedkit.messages import Packet
from fedkit.rounds import Fleet, dense_start, run_rounds
from fedkit.sparse.state import ModelState
from sim.scenario import make_scenario, server_scenario

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


class CountingFleet:
    """Counts what a fleet's packets would take as whole Flower messages.

    Args:
        fleet: The fleet that answers.

    Attributes:
        bytes_down: Bytes of all messages so far, one request per device.
        bytes_up: Bytes of all replies.
        seconds: What counting took.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.bytes_down = self.bytes_up = 0
        self.seconds = 0.0

    def exchange(self, phase: Phase, request: Packet) -> list[Packet]:
        """See `fedkit.rounds.Fleet.exchange`."""
        replies = self._fleet.exchange(phase, request)
        began, kind = time.perf_counter(), MESSAGE_TYPES[phase]
        self.bytes_down += len(replies) * packet_bytes(request, kind)
        self.bytes_up += sum(packet_bytes(reply, kind) for reply in replies)
        self.seconds += time.perf_counter() - began
        return replies


def run_cell(config: RunConfig) -> dict[str, Any]:
    """Run all rounds in this process, on one thread and without a run folder.

    Returns:
        `task`, `model`, `method`, `density`, `alpha`, `seed`, `rounds` and `devices` of the
        config; `accuracy` on the test data after the last round, `accuracies` after each;
        `density_measured`, counted from the masks; `bytes_up` and `bytes_down` of whole Flower
        messages, summed over devices and rounds; `seconds` of selection and rounds with their
        measuring, without the dense start. All but `seconds` are equal for equal configs.

    Raises:
        FedkitError: Whatever ended the run.
    """
    with threadpool_limits(1):
        scenario, dense = make_scenario(config), dense_model(config)
        fleet, accuracies = CountingFleet(scenario.local_fleet()), []
        began = time.perf_counter()
        for step in run_rounds(scenario.server(), fleet, scenario.server_data, dense):
            density = step.density
            if step.phase == "round":
                accuracies.append(step.accuracy)
        seconds = time.perf_counter() - began - fleet.seconds
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
        "seconds": round(seconds, 3),
    }


def dense_model(config: RunConfig) -> ModelState:
    """Return the dense start of a run, trained once per process for all configs that share it."""
    return _dense_model(RunConfig(**config.model_dump(include=set(DENSE_START_KEYS))))


@functools.lru_cache(maxsize=2)
def _dense_model(config: RunConfig) -> ModelState:
    scenario = server_scenario(config)
    return dense_start(scenario.server(), scenario.server_data)
