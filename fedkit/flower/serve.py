"""The server side of a fleet behind Flower: all rounds over the nodes that are connected."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.serverapp import Grid

from fedkit.flower.fleet import FlowerFleet
from fedkit.flower.nodes import NAMES, read_names, read_nodes
from fedkit.flower.randomness import draw_apart
from fedkit.flower.run_config import RunPlace
from fedkit.flower.runtime import here
from fedkit.server.checkpoint import RunFolder
from fedkit.server.events import EVENTS, EventLog
from fedkit.server.record import record_in, run_folder
from fedkit.server.rounds import Report
from fedkit.server.scenario import Scenario
from fedkit.server.status import METRICS, FleetStatus
from fedkit.tasks.task import ACCURACY
from fedkit.wire.validation import largest_reply

AfterStep = Callable[[Report], None]


def serve(
    scenario: Scenario,
    grid: Grid,
    place: RunPlace,
    kind: type[FlowerFleet] = FlowerFleet,
    after_step: AfterStep = lambda step: None,
) -> None:
    """Run all rounds over the nodes that are connected to Flower, and record them.

    Each step is printed, for people who follow `flwr run --stream`, and with what happened to
    devices logged in the folder's events. See `record` for what is raised.

    Args:
        scenario: The run.
        grid: The nodes.
        place: Where it is recorded.
        kind: What asks the nodes.
        after_step: Called with each step once it is stored.
    """
    draw_apart()
    scenario.check()
    # Two commands may have asked for the same run to go on, as the first was killed once it had.
    with run_folder(place.folder, scenario.config, place.resume, wait=place.resume) as folder:
        print(f"run folder: {folder.path}", flush=True)
        if folder.is_finished:
            return
        print(f"weights: {scenario.reach.line(scenario.config.density)}", flush=True)
        for warning in scenario.warnings:
            print(f"warning: {warning}", flush=True)
        _serve(scenario, grid, place, kind, folder, after_step)


def _serve(
    scenario: Scenario,
    grid: Grid,
    place: RunPlace,
    kind: type[FlowerFleet],
    folder: RunFolder,
    tell: AfterStep,
) -> None:
    config, status = scenario.config, FleetStatus.of(folder.path / EVENTS)
    log = EventLog(folder.path / EVENTS, status.add)
    measure = scenario.task.measure
    about = {} if measure is ACCURACY else {"metric": measure.about}

    def after_step(step: Report) -> None:
        _print(step, measure.name)
        log("step", **step.figures, **about)
        status.write(folder.path / METRICS)
        tell(step)

    log("serve", resume=place.resume, devices=config.devices, rounds=config.rounds)
    largest = largest_reply(scenario.engine.layout, config)
    names = {} if place.nodes is None else read_names(place.nodes.with_name(NAMES))
    fleet = kind(grid, config, largest, _indices(grid, place, config.devices), log, names)
    record_in(scenario, fleet, folder, after_step)


def _indices(grid: Grid, place: RunPlace, devices: int) -> Mapping[int, int] | None:
    """Return which device each node is, where that is known."""
    if place.nodes is not None:
        nodes = read_nodes(place.nodes)
        return {node: device for node, device in nodes.items() if device < devices}
    known = here(grid)
    return None if known is None else known.partitions


def _print(step: Report, metric: str) -> None:
    value = "not measured" if step.accuracy is None else f"{step.accuracy:.4f}"
    print(
        f"{step.phase} {step.round}: {metric} {value}, loss {step.loss}, "
        f"density {step.density:.4f}, bytes down {step.bytes_down}, up {step.bytes_up}",
        flush=True,
    )
