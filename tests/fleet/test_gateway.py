"""End to end: a real fleet, one device of which is the gateway of a microcontroller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedkit.cli.fleet import DEFAULTS
from fedkit.config import make_config
from fedkit.core.errors import FleetError
from fedkit.device.round import Device
from fedkit.engine.plan.plan import load_plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.fleet.commands import device_command
from fedkit.fleet.folder import DEVICE_FILE, open_device
from fedkit.flower.processes import tail
from fedkit.server.rounds import LocalFleet, run_rounds
from fedkit.server.scenario import server_scenario
from fedkit.trainer.emit import emit
from fedkit.trainer.on_disk import save_trainer
from sim.scenario import make_scenario
from tests.fleet.real import RealFleet
from tests.flower.same_bits import assert_same_bits
from tests.trainer.compiled import compile_host, running

CONFIG: dict[str, Any] = {
    "devices": 2,
    "partition": "iid",
    "examples_per_device": 12,
    "test_examples": 40,
    "method": "random",
    "selection": "none",
    "density": 0.1,
    "rounds": 2,
    "epochs": 1,
    "batch_size": 1,
    "server_epochs": 0,
    "sparse_epochs": 0,
    "stored_bits": 8,
}


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_a_gateway_is_an_ordinary_device(tmp_path: Path, own: bool) -> None:
    config = make_config({**DEFAULTS, **CONFIG})
    with RealFleet(tmp_path / "fleet", CONFIG, {"FEDKIT_SIMD": "plain"}) as fleet:
        plan, shares = (
            load_plan(fleet.fleet.device(0) / "model.plan"),
            make_scenario(config).devices,
        )
        engine = SparseEngine(plan, simd="plain", stored_bits=8)
        devices = [Device(i, share, engine, config) for i, share in enumerate(shares)]
        server = server_scenario(config)
        *_, last = run_rounds(server.server(), LocalFleet(devices), server.server_data)

        folder, masks = fleet.fleet.device(1), last.state.masks
        save_trainer(folder / "trainer", plan, masks, stored_bits=8)
        program = compile_host(emit(plan, masks, 1, 8), tmp_path)
        with running(program, shares[1] if own else None) as address:
            write_gateway(folder, address, own)
            fleet.start_server()
            fleet.start_devices()
            ended = fleet.run("--name", "first")
            assert ended.returncode == 0, ended.stdout + tail(fleet.log, 60)
            assert_same_bits(fleet.state("first"), last.state)


def write_gateway(folder: Path, address: str, own: bool) -> None:
    """Turn a device's folder into that of a gateway."""
    file = folder / DEVICE_FILE
    kept = [
        line
        for line in file.read_text().splitlines()
        if line.partition(" ")[0] not in ("trainer", "microcontroller", "data")
    ]
    data = "microcontroller" if own else "data.npz"
    added = [f'trainer = "trainer"\nmicrocontroller = "{address}"\ndata = "{data}"']
    file.write_text("\n".join([*kept, *added]) + "\n")


def test_a_gateway_needs_both_trainer_and_line(tmp_path: Path) -> None:
    file = tmp_path / DEVICE_FILE
    begin = 'superlink = "127.0.0.1:8000"\ndevice = 0\nsecure = false\n'
    file.write_text(begin + 'trainer = "model-c99-train"\n')
    with pytest.raises(FleetError, match="a gateway needs both"):
        open_device(tmp_path)
    file.write_text(begin + 'trainer = "a"\nmicrocontroller = "/dev/ttyACM0"\n')
    command = " ".join(device_command(tmp_path, open_device(tmp_path)))
    assert 'trainer="a" microcontroller="/dev/ttyACM0" baud=115200' in command
