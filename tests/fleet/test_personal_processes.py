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
from fedkit.device.staying import own_tensors
from fedkit.engine.plan.plan import load_plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.flower.processes import tail
from fedkit.methods.travel import Travel
from fedkit.server.checkpoint import RunFolder
from fedkit.server.rounds import LocalFleet, Report, run_rounds
from fedkit.server.scenario import server_scenario
from fedkit.sparse.state import ModelState
from sim.scenario import make_scenario
from tests.fleet.real import RealFleet
from tests.flower.same_bits import assert_same_bits

PERSONAL: dict[str, Any] = {
    **{"devices": 2, "partition": "iid", "examples_per_device": 40, "test_examples": 60},
    **{"rounds": 3, "epochs": 1, "batch_size": 12, "server_epochs": 1, "sparse_epochs": 2},
    **{"selection": "none", "adjust_every": 1, "adjust_stop": 1, "min_share": 1.0},
    **{"validation_share": 0.25, "device_eval": 1},
}


def in_process(values: dict[str, Any], plan: Path) -> tuple[list[Report], list[ModelState | None]]:
    """Every step of the same run in this process, and what each device keeps to itself."""
    config = make_config({**DEFAULTS, **values})
    scenario, engine = make_scenario(config), SparseEngine(load_plan(plan))
    devices = [replace(scenario.device(i), engine=engine) for i in range(config.devices)]
    fleet, server = LocalFleet(devices), server_scenario(config)
    reports = list(run_rounds(server.server(), fleet, server.server_data))
    local = Travel.of(config, engine).local
    return reports, [own_tensors(local, memory) for memory in fleet._memories]


def arrays_in(folder: Path) -> list[dict[str, np.ndarray[Any, Any]]]:
    """What a device's processes have written of their memories."""
    return [load_file(path) for path in sorted(folder.rglob("*.safetensors"))]


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
        reports, own = in_process(values, fleet.fleet.device(0) / "model.plan")
        assert_same_bits(fleet.state("personal"), reports[-1].state)
        written = [arrays_in(fleet.fleet.device(index) / "state") for index in range(2)]
    lines = folder.metrics()
    assert len(lines) == len(reports)
    for line, report in zip(lines, reports, strict=True):
        told = {**report.figures}
        assert {key: line[key] for key in told} == told
    assert lines[-1]["devices_measured"] == 2
    for index, kept in enumerate(own):
        assert (kept is not None) == ("local" in changes)
        for name, values_of in (kept.weights if kept else {}).items():
            found = [
                array
                for arrays in written[index]
                for key, array in arrays.items()
                if key.endswith(name)
            ]
            assert any(np.array_equal(each, values_of) for each in found), name
