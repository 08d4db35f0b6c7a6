"""The kill matrix: server, SuperLink or device dies at any point, and the model is the same.

Two devices, real processes, TLS. A run that nobody disturbed gives the bits; then each process is
killed at each point, what died is started again as systemd would, the run is resumed if it ended,
and its last model must have the same bits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedkit.flower.processes import tail
from tests.fleet.kills import CONFIG, Kill
from tests.fleet.real import RealFleet
from tests.flower.same_bits import assert_same_bits
from tests.processes import HANG

DEVICE, SERVER = "flwr-clientapp", "flwr-serverapp"
FIRST, ROUND_1, ROUND_2 = (f"{step:04d}0000.safetensors" for step in (0, 2, 3))
CHECKPOINT = "model.safetensors"


class Disturbed:
    """A fleet whose processes can be made to die."""

    def __init__(self, folder: Path) -> None:
        self.kill = Kill(folder)
        self.fleet = RealFleet(folder, CONFIG, self.kill.environment)
        self.fleet.start_server()
        self.fleet.start_devices()
        ended = self.fleet.run("--name", "undisturbed")
        assert ended.returncode == 0, ended.stdout + tail(self.fleet.log, 60)

    def check(self, name: str) -> None:
        """Resume the run as often as it takes, and compare its model."""
        for _ in range(3):
            ended = self.fleet.run("--resume", name)
            if ended.returncode == 0:
                break
        self.same(name)

    def same(self, name: str) -> None:
        assert self.kill.done, f"nothing died; {tail(self.fleet.log, 60)}"
        assert_same_bits(self.fleet.state(name), self.fleet.state("undisturbed"))


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disturbed]:
    made = Disturbed(tmp_path_factory.mktemp("kills"))
    with made.fleet:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "stage", "count"),
    [
        (FIRST, "after", 1),
        (ROUND_1, "before", 1),
        (ROUND_1, "during", 2),
        (ROUND_2, "after", 1),
        (ROUND_2, "during", 1),
    ],
)
def test_a_device_whose_app_dies_is_asked_again(
    disturbed: Disturbed, file: str, stage: str, count: int
) -> None:
    name = f"device-{file[3]}-{stage}"
    disturbed.kill.at(DEVICE, file, stage, count)
    ended = disturbed.fleet.run("--name", name)
    assert ended.returncode == 0, ended.stdout + tail(disturbed.fleet.log, 60)
    disturbed.same(name)
    assert any(event["event"] == "failed" for event in disturbed.fleet.events(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "stage", "count"),
    [
        ("structure.json", "before", 1),
        (CHECKPOINT, "before", 2),
        (CHECKPOINT, "during", 3),
        (CHECKPOINT, "after", 3),
        (CHECKPOINT, "after", 2),
    ],
)
def test_a_server_that_dies_goes_on_where_it_was(
    disturbed: Disturbed, file: str, stage: str, count: int
) -> None:
    name = f"server-{count}-{stage}"
    disturbed.kill.at(SERVER, file, stage, count)
    assert disturbed.fleet.run("--name", name).returncode != 0
    disturbed.check(name)
    lines = [(line["phase"], line["round"]) for line in metrics(disturbed, name)]
    assert lines == [("start", 0), ("selection", 0), ("round", 1), ("round", 2), ("round", 3)]


def metrics(disturbed: Disturbed, name: str) -> list[dict[str, Any]]:
    from fedkit.server.checkpoint import RunFolder

    return RunFolder.open(disturbed.fleet.fleet.runs / name).metrics()


def while_it_lingers(disturbed: Disturbed, act: Callable[[], None]) -> threading.Thread:
    """Do something while a device is about to write what it remembers."""

    def wait() -> None:
        deadline = time.monotonic() + HANG
        while not disturbed.kill.done and time.monotonic() < deadline:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize("file", [FIRST, ROUND_2])
def test_a_superlink_that_dies_is_started_and_the_run_resumed(
    disturbed: Disturbed, file: str
) -> None:
    fleet, name = disturbed.fleet, f"superlink-{file[3]}"

    def power_cut() -> None:
        fleet.kill("server")
        time.sleep(3)
        fleet.start_server()

    disturbed.kill.at(DEVICE, file, "linger")
    thread = while_it_lingers(disturbed, power_cut)
    ended = fleet.run("--name", name)
    thread.join()
    assert ended.returncode != 0
    disturbed.check(name)


@pytest.mark.slow
@pytest.mark.parametrize("file", [ROUND_1, ROUND_2])
def test_a_board_that_loses_power_comes_back_and_takes_part(
    disturbed: Disturbed, file: str
) -> None:
    fleet, name = disturbed.fleet, f"board-{file[3]}"

    def power_cut() -> None:
        fleet.kill("device-1")
        time.sleep(2)
        fleet.restart_device(1)

    disturbed.kill.at(DEVICE, file, "linger", 2)
    thread = while_it_lingers(disturbed, power_cut)
    ended = fleet.run("--name", name)
    thread.join()
    assert ended.returncode == 0, ended.stdout + tail(fleet.log, 60)
    disturbed.same(name)


@pytest.mark.slow
def test_everything_loses_power_at_once(disturbed: Disturbed) -> None:
    fleet = disturbed.fleet

    def power_cut() -> None:
        for name in ("server", "device-0", "device-1"):
            fleet.kill(name)
        time.sleep(1)
        fleet.start_server()
        for index in (0, 1):
            fleet.restart_device(index)

    disturbed.kill.at(DEVICE, ROUND_2, "linger")
    thread = while_it_lingers(disturbed, power_cut)
    ended = fleet.run("--name", "everything")
    thread.join()
    assert ended.returncode != 0
    disturbed.check("everything")
