"""The Flower side against the real thing: SuperLink, simulated SuperNodes, `flwr run sim/app`."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from fedkit.checkpoint import RunFolder
from fedkit.config import RunConfig, make_config
from fedkit.errors import FleetError
from fedkit.flower.fleet import in_device_order
from fedkit.flower.run_config import FOLDER_KEY
from fedkit.flower.wire import from_records, packet_bytes, to_records
from fedkit.messages import Packet
from sim.run import APP, FlowerSimulation, record
from sim.scenario import make_scenario
from sim.superlink import tail

BOARD = Path(__file__).resolve().parent.parent / "examples" / "board"

CONFIG = make_config(
    {
        "devices": 3,
        "rounds": 3,
        "epochs": 1,
        "examples_per_device": 40,
        "adjust_every": 1,
        "adjust_stop": 2,
        "server_epochs": 1,
    }
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunFolder]:
    """The same run in this process and behind a real SuperLink, and one that must fail."""
    path = tmp_path_factory.mktemp("runs")
    scenario = make_scenario(CONFIG)
    here = record(scenario, scenario.local_fleet(), path / "here", lambda step: None)
    with FlowerSimulation(path / "log") as simulation:
        simulation.submit(CONFIG, path / "flower", workers=2).wait(300)
        failing = CONFIG.model_copy(update={"lr": 1e20, "epochs": 3, "server_epochs": 0})
        simulation.submit(failing, path / "failing", workers=2).wait(300)
    assert (path / "flower" / "metrics.jsonl").is_file(), tail(path / "log", 60)
    return here, RunFolder.open(path / "flower")


def test_flower_run_equals_in_process_run_bit_for_bit(runs: tuple[RunFolder, RunFolder]) -> None:
    here, flower = (folder.load() for folder in runs)
    assert here.round == flower.round == CONFIG.rounds
    for kind in ("weights", "stats", "masks"):
        mine, theirs = getattr(here.state, kind), getattr(flower.state, kind)
        assert list(mine) == list(theirs)
        assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine), kind


def test_metrics_are_equal_too(runs: tuple[RunFolder, RunFolder]) -> None:
    of_transport = {"seconds", "message_bytes_down", "message_bytes_up"}
    here, flower = (
        [{k: v for k, v in line.items() if k not in of_transport} for line in folder.metrics()]
        for folder in runs
    )
    assert here == flower
    assert len(here) == CONFIG.rounds + 2


def test_message_bytes_are_the_payload_and_a_small_envelope(
    runs: tuple[RunFolder, RunFolder],
) -> None:
    for line in runs[1].metrics()[1:]:
        messages = CONFIG.devices * (2 if line["phase"] == "selection" else 1)
        for way in ("down", "up"):
            envelope = line[f"message_bytes_{way}"] - line[f"bytes_{way}"]
            assert 0 < envelope < 3000 * messages


def test_a_failing_device_ends_the_run_with_its_reason(runs: tuple[RunFolder, RunFolder]) -> None:
    reason = (runs[1].path.parent / "failing" / "error.txt").read_text()
    assert "devices failed in phase 'train'" in reason
    assert "lower lr" in reason


@pytest.mark.parametrize("app", [APP, BOARD], ids=["sim", "board"])
def test_the_apps_run_config_has_every_key_and_default(app: Path) -> None:
    settings = tomllib.loads((app / "pyproject.toml").read_text())
    keys = settings["tool"]["flwr"]["app"]["config"]
    assert keys == {FOLDER_KEY: "", **RunConfig().model_dump()}


def test_packets_survive_records() -> None:
    packet = Packet(
        {"a": np.arange(3, dtype=np.uint8), "b": np.zeros((2, 0), np.float32)},
        {"n": 3, "x": 0.1, "digest": "ab"},
    )
    back = from_records(to_records(packet))
    assert back.numbers == packet.numbers
    for name, array in packet.arrays.items():
        assert back.arrays[name].dtype == array.dtype
        assert np.array_equal(back.arrays[name], array)
    assert from_records(to_records(Packet({}))) == Packet({})


def test_packet_bytes_grow_with_the_payload() -> None:
    small, large = (Packet({"a": np.arange(n, dtype=np.uint8)}) for n in (100, 10_100))
    assert packet_bytes(large, "train") - packet_bytes(small, "train") in range(10_000, 10_010)


@pytest.mark.parametrize("app", [APP, BOARD], ids=["sim", "board"])
def test_the_app_folder_holds_only_what_flower_ships(app: Path) -> None:
    shipped = {path.name for path in app.iterdir() if path.name != "__pycache__"}
    assert shipped == {"pyproject.toml", "client_app.py", "server_app.py"}


def replies_of(*indices: int) -> list[Packet]:
    return [Packet({}, {"device": index, "own": 10 + index}) for index in indices]


def test_replies_are_brought_into_the_order_of_the_devices() -> None:
    ordered = in_device_order(replies_of(2, 0, 1))
    assert [reply.numbers for reply in ordered] == [{"own": 10}, {"own": 11}, {"own": 12}]


@pytest.mark.parametrize("indices", [(0, 0), (1, 2)])
def test_nodes_that_are_the_same_device_are_refused(indices: tuple[int, int]) -> None:
    with pytest.raises(FleetError, match="each must have an index of its own, from 0 to 1"):
        in_device_order(replies_of(*indices))
