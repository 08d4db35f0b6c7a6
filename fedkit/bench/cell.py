"""One cell of a comparison: a whole run in this process, told by its figures alone.

Cells of one seed begin with the same dense model, so a process that computes several of them trains
it once.
"""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from fedkit.bench.measured import MeasuredFleet
from fedkit.bench.replay import device_memory
from fedkit.config import RunConfig
from fedkit.engine.flops import CountingEngine, positions
from fedkit.server.rounds import dense_start, run_rounds
from fedkit.server.scenario import Scenario, server_scenario
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import ACCURACY
from sim.scenario import make_scenario

DENSE_START_KEYS = (
    "task",
    "model",
    "seed",
    "engine",
    "precision",
    "server_share",
    "server_epochs",
    "batch_size",
    "lr",
    "momentum",
    "weight_decay",
)
"""All of a run's configuration that its dense start depends on."""


def run_cell(config: RunConfig) -> dict[str, Any]:
    """Run all rounds in this process, on one thread and without a run folder.

    Returns:
        `task`, `model`, `method`, `density`, `alpha`, `seed`, `rounds` and `devices` of the
        config; `accuracy`, the task's metric on the test data after the last round, with `metric`
        about it where it is another, `accuracies` after each round
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
    measure = scenario.task.measure
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
        **({} if measure is ACCURACY else {"metric": measure.about}),
        "accuracy": accuracies[-1],
        "accuracies": accuracies,
        "density_measured": density,
        "bytes_up": fleet.bytes_up,
        "bytes_down": fleet.bytes_down,
        "train_flops": fleet.paid.flops,
        **memory,
        "seconds": round(seconds, 3),
    }


def _measured_fleet(scenario: Scenario) -> MeasuredFleet:
    initial = scenario.engine.initial_state()
    inputs = scenario.test.inputs
    geometry = positions(scenario.module(initial), inputs.shape[1:], inputs.dtype == np.int64)
    engine = CountingEngine(scenario.engine, geometry)
    own = (scenario.device(index) for index in range(len(scenario.devices)))
    return MeasuredFleet([replace(device, engine=engine) for device in own], engine)


def dense_model(config: RunConfig) -> ModelState:
    """Return the dense start of a run, trained once per process for all configs that share it."""
    return _dense_model(RunConfig(**{key: getattr(config, key) for key in DENSE_START_KEYS}))


@functools.lru_cache(maxsize=2)
def _dense_model(config: RunConfig) -> ModelState:
    scenario = server_scenario(config)
    return dense_start(scenario.server(), scenario.server_data)
