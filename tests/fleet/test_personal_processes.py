"""Personal models through a real SuperLink and SuperNodes: the bits of one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedkit.cli.fleet import DEFAULTS
from fedkit.config import make_config
from fedkit.engine.plan.plan import load_plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.flower.processes import tail
from fedkit.server.checkpoint import RunFolder
from fedkit.server.rounds import LocalFleet, Report, run_rounds
from fedkit.server.scenario import server_scenario
from fedkit.wire.messages import Packet
from sim.scenario import make_scenario
from tests.fleet.real import RealFleet
from tests.flower.same_bits import assert_same_bits

PERSONAL: dict[str, Any] = {
    **{"devices": 2, "partition": "iid", "examples_per_device": 40, "test_examples": 60},
    **{"rounds": 3, "epochs": 1, "batch_size": 12, "server_epochs": 1, "sparse_epochs": 2},
    **{"selection": "none", "adjust_every": 1, "adjust_stop": 1, "min_share": 1.0},
    **{"validation_share": 0.25, "device_eval": 1},
}


Arrays = dict[str, np.ndarray[Any, Any]]


def in_process(values: dict[str, Any], plan: Path) -> tuple[list[Report], list[Arrays]]:
    """Every step of the same run in this process, and what each device remembers at its end."""
    config = make_config({**DEFAULTS, **values})
    scenario, engine = make_scenario(config), SparseEngine(load_plan(plan))
    devices = [replace(scenario.device(i), engine=engine) for i in range(config.devices)]
    fleet, server = LocalFleet(devices), server_scenario(config)
    reports = list(run_rounds(server.server(), fleet, server.server_data))
    memories = [fleet._memories.get(number) or Packet({}, {}) for number in range(len(devices))]
    return reports, [dict(memory.arrays) for memory in memories]


def remembered(folder: Path) -> list[Arrays]:
    """What a real device has written of its memory, after each of its last steps."""
    return [
        {
            name.removeprefix("memory."): a
            for name, a in load_file(path).items()
            if "memory." in name
        }
        for path in sorted(folder.rglob("*.safetensors"))
    ]


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"local": "norm", "uplink_bits": 4},
        {"train": "norm+head", "local": "head"},
        {"train": "norm"},
    ],
    ids=str,
)
def test_real_devices_end_with_the_bits_of_one_process(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    values = {**PERSONAL, **changes}
    with RealFleet(tmp_path, values) as fleet:
        fleet.start_server()
        fleet.start_devices()
        ended = fleet.run("--name", "personal")
        assert ended.returncode == 0, ended.stdout + tail(fleet.log, 60)
        folder = RunFolder.open(fleet.fleet.runs / "personal")
        reports, memories = in_process(values, fleet.fleet.device(0) / "model.plan")
        assert_same_bits(fleet.state("personal"), reports[-1].state)
        written = [remembered(fleet.fleet.device(index) / "state") for index in range(2)]
    for line, report in zip(folder.metrics(), reports, strict=True):
        assert {key: line[key] for key in report.figures} == report.figures
    assert folder.metrics()[-1]["devices_measured"] == 2
    for device, memory in zip(written, memories, strict=True):
        assert memory and any(same(found, memory) for found in device)
    if "local" in changes:
        assert not any(same(found, memories[0]) for found in written[1]), "their own, each"
