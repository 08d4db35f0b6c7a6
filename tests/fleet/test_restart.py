"""A device that was killed is started again, at once and with nothing else to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedkit.flower.processes import kill_marked
from tests.fleet.one_device import CONFIG
from tests.fleet.real import RealFleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RealFleet]:
    with RealFleet(tmp_path, CONFIG) as made:
        yield made
        kill_marked(f"FLWR_HOME={made.fleet.server / 'flwr'}")


@pytest.mark.slow
def test_a_device_that_was_killed_comes_back_with_its_first_start(fleet: RealFleet) -> None:
    """Flower refuses it for a minute; it waits and says why."""
    fleet.start_server()
    fleet.start_device(0)
    fleet.wait_for(lambda: fleet.times_said("SuperNode ID") == 1, "the device to connect")
    fleet.kill("device-0")
    fleet.start_device(0)
    fleet.wait_for(
        lambda: fleet.times_said("SuperNode ID") == 2 or not fleet.alive("device-0"), "its return"
    )
    assert fleet.alive("device-0"), fleet.last()
    assert fleet.said("the server does not let this device in")
