"""One simulation of `fedkit bench simulate`, in a process of its own: RUNNER CELL FOLDER.

FOLDER gets a line per round with the time at which it ended (`times`), and the model (`model.npz`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TIMES, MODEL = "times", "model.npz"
RUN: dict[str, Any] = {
    "task": "fedkit.bench.simulate_task:task",
    "method": "dense",
    "partition": "natural-id",
    "single_class": "allow",
    "server_share": 0.0,
    "server_epochs": 0,
    "sparse_epochs": 0,
    "epochs": 2,
    "batch_size": 20,
    "lr": 0.05,
    "lr_final": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.0,
}
"""The local work of all runners: two steps over all that a device holds."""


def stock_flower_ray(cell: Mapping[str, Any], folder: Path) -> None:
    """FedAvg of Flower itself, a torch model, Ray."""
    from fedkit.flower.local_superlink import SuperLink
    from fedkit.flower.processes import toml_pairs

    keys = {key: RUN[key] for key in ("lr", "momentum", "epochs")}
    keys |= {"rounds": cell["rounds"], "nodes": cell["devices"], "times": str(folder / TIMES)}
    simulation = {
        "num-supernodes": cell["devices"],
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": cell["workers"],
    }
    with SuperLink(folder / "log", "--simulation") as link:
        app = Path(__file__).with_name("stock")
        link.run_app(app, keys, "--federation-config", toml_pairs(simulation)).wait()


def fedkit_ray(cell: Mapping[str, Any], folder: Path) -> None:
    """Ours behind `flwr run`, on Ray."""
    from sim.simulation import FlowerSimulation

    with FlowerSimulation(folder / "log") as simulation:
        process = simulation.submit(_config(cell), folder / "run", cell["workers"])
        noted = 0
        while process.poll() is None:
            noted = _note_lines(folder, noted)
            time.sleep(0.02)
        _note_lines(folder, noted)
    _keep_model(folder)


def fedkit_flower(cell: Mapping[str, Any], folder: Path) -> None:
    """Ours through Flower, as `fedkit run` has it."""
    from fedkit.flower.run_config import RunPlace
    from sim.scenario import make_scenario
    from sim.simulation import simulate

    scenario = make_scenario(_config(cell))
    scenario.check()
    place = RunPlace(folder / "run")
    simulate(scenario, place, "auto", cell["workers"], _noting(folder), folder / "log")
    _keep_model(folder)


def fedkit_process(cell: Mapping[str, Any], folder: Path) -> None:
    """Ours without Flower, as `fedkit run --in-process` has it."""
    from fedkit.server.record import record
    from sim.scenario import make_scenario

    scenario = make_scenario(_config(cell))
    scenario.check()
    fleet = scenario.local_fleet(folder / "run", cell["workers"])
    record(scenario, fleet, folder / "run", _noting(folder))
    _keep_model(folder)


RUNNERS: dict[str, Callable[[Mapping[str, Any], Path], None]] = {
    "stock-flower-ray": stock_flower_ray,
    "fedkit-ray": fedkit_ray,
    "fedkit-flower": fedkit_flower,
    "fedkit-process": fedkit_process,
}


def _config(cell: Mapping[str, Any]) -> Any:
    from fedkit.config import make_config

    asked = cell["per_round"] if cell["per_round"] < cell["devices"] else 0
    own = {"devices": cell["devices"], "rounds": cell["rounds"], "devices_per_round": asked}
    return make_config({**RUN, **own, "measure_every": cell["rounds"]})


def _noting(folder: Path) -> Callable[[Any], None]:
    def note(step: Any) -> None:
        if step.phase == "round":
            _note(folder, 1)

    return note


def _note(folder: Path, rounds: int) -> None:
    with (folder / TIMES).open("a") as file:
        file.write(f"{time.time()}\n" * rounds)


def _note_lines(folder: Path, noted: int) -> int:
    """Note the rounds that a run's metrics have more than were noted; return how many there are."""
    path = folder / "run" / "metrics.jsonl"
    rounds = path.read_text().count('"phase": "round"') if path.is_file() else 0
    _note(folder, rounds - noted)
    return rounds


def _keep_model(folder: Path) -> None:
    import numpy as np

    from fedkit.server.checkpoint import RunFolder

    np.savez(folder / MODEL, **RunFolder.open(folder / "run").load().state.weights)


if __name__ == "__main__":
    RUNNERS[sys.argv[1]](json.loads(sys.argv[2]), Path(sys.argv[3]))
