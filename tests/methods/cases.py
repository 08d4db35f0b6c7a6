"""A small real run of any method, kept with every packet that it sent."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.config import RunConfig, make_config
from fedkit.device.round import Device
from fedkit.methods.interface import Opening
from fedkit.methods.registry import resolve
from fedkit.server.rounds import LocalFleet, Report, Server, run_rounds
from fedkit.server.scenario import Scenario
from fedkit.tasks.task import Examples
from sim.scenario import make_scenario
from tests.server.recording import RecordingFleet

SMALL: dict[str, Any] = {
    "devices": 2,
    "rounds": 3,
    "epochs": 2,
    "batch_size": 8,
    "examples_per_device": 24,
    "test_examples": 20,
    "server_epochs": 1,
    "sparse_epochs": 2,
    "adjust_every": 1,
    "adjust_stop": 3,
    "adjust_examples": 16,
    "density": 0.1,
    "seed": 2,
}
"""Masks may change after rounds 1 and 2 of three."""

Arrays = Mapping[str, NDArray[Any]]


@functools.cache
def _scenario() -> Scenario:
    return make_scenario(make_config(SMALL))


@dataclass(frozen=True)
class RunCase:
    """The parts of a run: one engine, one split of one task, whatever the method."""

    server: Server
    devices: list[Device]
    server_data: Examples

    @property
    def opening(self) -> Opening:
        """What the method's start is given; the dense start is not trained."""
        server, engine = self.server, self.server.engine
        shape, fleet = server.test.inputs.shape[1:], LocalFleet(self.devices)
        state, data = engine.initial_state(), self.server_data
        return Opening(server.config, engine, state, data, fleet, server.module, shape)


def case(method: str, **changes: object) -> RunCase:
    """Return `SMALL` with other keys, none of which may be about data or model."""
    small, config = _scenario(), resolve(make_config({**SMALL, "method": method, **changes}))
    devices = [Device(i, share, small.engine, config) for i, share in enumerate(small.devices)]
    assert small.server_data is not None
    return RunCase(Server(config, small.task, small.engine, small.test), devices, small.server_data)


def run(method: str, **changes: object) -> tuple[RunConfig, list[Report], RecordingFleet]:
    made = case(method, **changes)
    fleet = RecordingFleet(LocalFleet(made.devices))
    return made.server.config, list(run_rounds(made.server, fleet, made.server_data)), fleet


def same_bits(one: Arrays, other: Arrays) -> bool:
    return list(one) == list(other) and all(one[n].tobytes() == other[n].tobytes() for n in one)


def kept_and_dense(report: Report) -> int:
    """Return how many values of a model travel: kept weights and parameters without a mask."""
    state = report.state
    rest = sum(w.size for name, w in state.weights.items() if name not in state.masks)
    return rest + sum(int(np.count_nonzero(mask)) for mask in state.masks.values())
