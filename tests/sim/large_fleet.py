"""A fleet of ten thousand devices whose data stays on disk: `python -m tests.sim.large_fleet DIR`.

Prints JSON: the peak of this process and of its workers together, and what the last round gave.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fedkit.bench.process import memory
from fedkit.config import make_config
from fedkit.flower.run_config import RunPlace
from fedkit.server.rounds import Report
from fedkit.tasks import sources
from fedkit.tasks.task import Examples, Task
from sim.scenario import share_out
from sim.simulation import simulate

DEVICES, PER_DEVICE, SHAPE = 10_000, 32, (1, 28, 28)
ROUNDS = 2


def run(folder: Path) -> None:
    data = sources.stored(folder)
    test = Examples(data.inputs[:64], data.targets[:64])
    task = Task("stored", "resnet8", lambda: data, lambda: test)
    keys = {
        "devices": DEVICES,
        "devices_per_round": 100,
        "rounds": ROUNDS,
        "partition": "natural-id",
        "server_share": 0.0,
        "server_epochs": 0,
        "sparse_epochs": 0,
        "epochs": 1,
        "uplink_bits": 4,
        "min_share": 1.0,
    }
    steps: list[Report] = []
    place = RunPlace(folder / "run")
    scenario = share_out(make_config(keys), task)
    scenario.check()
    simulate(scenario, place, "processes", 2, steps.append, folder / "log")
    peak = memory("VmHWM")
    print(json.dumps({"peak": peak, "round": steps[-1].round, "loss": steps[-1].loss}))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
