"""`fedkit fleet run`: what is checked before Flower starts, the run, and how it ended."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedkit.cli.ending import how_it_ended
from fedkit.cli.fleet_server import check_owner, warn_root
from fedkit.config import RunConfig, make_config
from fedkit.core.errors import FleetError
from fedkit.core.names import check_name, find_run
from fedkit.device.data import Expected
from fedkit.engine.choose import task_plan
from fedkit.engine.plan.plan import load_plan, plan_digest
from fedkit.fleet import commands
from fedkit.fleet.folder import PLAN, Fleet, read_nodes
from fedkit.flower.nodes import NODES
from fedkit.flower.processes import Value
from fedkit.flower.supernode import APP, app_digest
from fedkit.server.checkpoint import RunFolder
from fedkit.server.scenario import Scenario, server_scenario

Say = Callable[[str], None]


def run_fleet(fleet: Fleet, values: Mapping[str, Any], name: str, resume: str, say: Say) -> Path:
    """Run a fleet, or go on with a run; all that can be checked is checked before it starts.

    Args:
        fleet: The fleet.
        values: Keys that replace those of the fleet's runs.
        name: Of the run; "" for its time.
        resume: Name of a run to go on with, `last` for the last one, or "".
        say: Where words for the person go.

    Returns:
        The run folder.

    Raises:
        FedkitError: The run cannot be, failed, or ended before its last round.
    """
    check_owner(fleet.path)
    warn_root(say)
    if resume:
        folder = find_run(fleet.runs, resume)
        begun = RunFolder.open(folder)
        config = make_config({**begun.config.as_dict(), **values})
        begun.check_same(config)
        if begun.is_held:
            say(
                f"the run {folder.name} still goes on at the server, though the command that began "
                "it has ended; waiting for its end (Ctrl-C leaves it as it is)"
            )
        with begun.held(wait=True):  # what is mended there is nobody's half-written file
            if begun.is_finished:
                say(
                    f"the run {folder.name} is finished; nothing is left to do; look at it with: "
                    f"fedkit show {folder}"
                )
                return folder
            RunFolder.resume(folder, config)
    else:
        folder = fleet.runs / check_name(name or time.strftime("%Y%m%d-%H%M%S"))
        config = make_config({**fleet.config.as_dict(), **values})
        RunFolder.check_free(folder)
    _tell_other_app(fleet, say)
    scenario = server_scenario(config)
    scenario.check()
    given: dict[str, Value] = {
        **config.as_dict(),
        "folder": str(folder),
        "resume": bool(resume),
        "expected": expected(fleet, scenario).text(),
    }
    if fleet.secure:
        read_nodes(fleet)  # a damaged file is told here, not by the server's app
        given["nodes"] = str(fleet.server / NODES)
    command = commands.run_command(fleet, given)
    say(commands.shown(command))
    ended = subprocess.run(command, env=commands.environment(fleet.server / "flwr"))
    _check_finished(fleet, config, folder, ended.returncode)
    say(f"done; look at it with: fedkit show {folder}")
    return folder


def _tell_other_app(fleet: Fleet, say: Say) -> None:
    """Say so where the server's app is not the one that devices run by themselves."""
    own = fleet.server / "app"
    try:
        digest = app_digest(own)
    except (ValueError, OSError) as error:
        raise FleetError(
            f"{own} holds no Flower app ({error}); put a copy of {APP} there"
        ) from error
    if digest != app_digest(APP):
        say(
            f"note: {own} is not the app of this fedkit, and devices refuse it unless their "
            f'device.toml says app = "{digest}"; after an update put a copy of {APP} there'
        )


def expected(fleet: Fleet, scenario: Scenario) -> Expected:
    """Return what the devices of a run must hold: data like the task's, and the plan of its model.

    Raises:
        FleetError: The run's model differs from that of the plan that devices were given.
    """
    config, test = scenario.config, scenario.test
    given = fleet.server / PLAN
    digest = ""
    if config.engine != "torch" and given.is_file():
        model = scenario.task.build_model(config.seed, config.model)
        digest = plan_digest(task_plan(scenario.task, model))
        if digest != plan_digest(load_plan(given)):
            raise FleetError(
                f"this run's model (task {config.task}, model {config.model or 'of the task'}) is "
                "not the one whose plan the devices were given when the fleet was made; "
                "make a fleet for it, or give every device and the server its plan: fedkit plan "
                f"{PLAN} --task {config.task} --model {config.model or 'NAME'}"
            )
    return Expected.of(config.task, test, digest)


def _check_finished(fleet: Fleet, config: RunConfig, folder: Path, code: int) -> None:
    again = f"fedkit fleet run {fleet.path}"
    if folder.is_dir():
        again += f" --resume {folder.name}"
    said, done = how_it_ended(folder)
    if said:
        raise FleetError(f"the run failed: {said}; once that is fixed, go on with: {again}")
    if done < config.rounds:
        hint = "" if folder.is_dir() else f" (is it up? fedkit fleet server {fleet.path})"
        raise FleetError(
            f"the run ended (exit code {code}) after {done} of {config.rounds} rounds; what the "
            f"server said is above{hint}; go on with: {again}"
        )
