"""What `fedkit fleet init` puts into the devices' folders: the model's plan, and data if asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fedkit.flower
from fedkit.config import RunConfig
from fedkit.engine.choose import task_plan
from fedkit.engine.plan.plan import save_plan
from fedkit.engine.plan.structure import Plan
from fedkit.fleet.folder import PLAN, Fleet
from fedkit.server.scenario import server_scenario
from fedkit.tasks.task import Examples
from sim.scenario import make_scenario

APP = Path(fedkit.flower.__file__).parent / "apps" / "board"
"""The Flower app of a fleet of real devices."""


@dataclass(frozen=True)
class Devices:
    """Of all devices: the plan, None for devices that compute with torch; and each one's data."""

    plan: Plan | None
    data: list[Examples]


def prepare(config: RunConfig, with_data: bool) -> Devices:
    """Make everything before any folder is made, so that a mistake leaves none.

    Args:
        config: Of the fleet's runs.
        with_data: Whether devices get a share of the task's data, the same as in a simulation.
    """
    scenario = make_scenario(config) if with_data else server_scenario(config)
    scenario.check()
    data = scenario.devices if with_data else []
    if config.engine == "torch":
        return Devices(None, data)
    model = scenario.task.build_model(config.seed, config.model)
    return Devices(task_plan(scenario.task, model), data)


def write(fleet: Fleet, devices: Devices) -> None:
    """Write plans and data into the devices' folders, and the plan into the server's."""
    if devices.plan is not None:
        save_plan(devices.plan, fleet.server / PLAN)
    for index in range(fleet.devices):
        folder = fleet.device(index)
        if devices.plan is not None:
            save_plan(devices.plan, folder / PLAN)
        if devices.data:
            share = devices.data[index]
            np.savez(folder / "data.npz", inputs=share.inputs, targets=share.targets)
