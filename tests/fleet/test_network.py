"""A device in a network namespace of its own: cut off, and back; and no orders from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedkit.cli.fleet import DEFAULTS
from fedkit.config import make_config
from fedkit.flower.processes import free_port, tail
from sim.scenario import make_scenario
from tests.fleet.partial import Partial, run
from tests.fleet.real import RealFleet
from tests.flower.same_bits import assert_same_bits

SPACE, HERE, THERE = "fedkit-test", "10.231.77.1", "10.231.77.2"
OUTSIDE, INSIDE = "fedkit-out", "fedkit-in"

CONFIG: dict[str, Any] = {
    "devices": 2,
    "partition": "iid",
    "examples_per_device": 24,
    "test_examples": 60,
    "selection": "none",
    "rounds": 14,
    "epochs": 1,
    "batch_size": 12,
    "adjust_every": 1,
    "adjust_stop": 9,
    "server_epochs": 1,
    "sparse_epochs": 2,
    "deadline": 25.0,
    "min_share": 0.5,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="namespaces need root and iproute2"
    ),
]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def namespace() -> Iterator[tuple[str, ...]]:
    """Two ends of a cable, one in a namespace; returns what runs a command there."""
    subprocess.run(["ip", "netns", "del", SPACE], capture_output=True)
    ip("netns", "add", SPACE)
    try:
        ip("link", "add", OUTSIDE, "type", "veth", "peer", "name", INSIDE, "netns", SPACE)
        ip("address", "add", f"{HERE}/30", "dev", OUTSIDE)
        ip("link", "set", OUTSIDE, "up")
        inside = ("ip", "netns", "exec", SPACE)
        for command in (
            ("address", "add", f"{THERE}/30", "dev", INSIDE),
            ("link", "set", INSIDE, "up"),
            ("link", "set", "lo", "up"),
        ):
            subprocess.run([*inside, "ip", *command], check=True)
        yield inside
    finally:
        subprocess.run(["ip", "link", "del", OUTSIDE], capture_output=True)
        ip("netns", "del", SPACE)


ORDER = """
import ssl, sys, urllib.error, urllib.request
trusted = ssl.create_default_context(cafile=sys.argv[2])
orders = ("control/register-node", "control/start-run", "runtime/acquire-task")
for path in ("health", *(f"v1/{order}" for order in orders)):
    body = None if path == "health" else b""
    request = urllib.request.Request(f"https://{sys.argv[1]}/{path}", data=body)
    try:
        print(path, urllib.request.urlopen(request, context=trusted, timeout=600).status)
    except urllib.error.HTTPError as error:
        print(path, error.code)
"""


def steps(fleet: RealFleet) -> int:
    path = fleet.fleet.runs / "cut" / "events.jsonl"
    if not path.is_file():
        return 0
    return sum(e["event"] == "step" and e["phase"] == "round" for e in fleet.events("cut"))


def test_a_device_that_is_cut_off_for_two_rounds_returns_and_takes_part(
    namespace: tuple[str, ...], tmp_path: Path
) -> None:
    address = f"{HERE}:{free_port()}"
    with RealFleet(tmp_path, CONFIG, address=address) as fleet:
        fleet.start_server()
        authority = str(fleet.fleet.server / "ca.crt")
        asked = subprocess.run(
            [*namespace, sys.executable, "-c", ORDER, address, authority],
            capture_output=True, text=True,
        )  # fmt: skip
        assert asked.stdout.split() == [
            "health", "200", "v1/control/register-node", "403", "v1/control/start-run", "403",
            "v1/runtime/acquire-task", "403",
        ], asked.stderr  # fmt: skip

        fleet.start_device(0)
        fleet.start_device(1, *namespace)

        def cut() -> None:
            fleet.wait_for(lambda: steps(fleet) == 1, "the first round")
            ip("link", "set", OUTSIDE, "down")
            fleet.wait_for(lambda: steps(fleet) == 3, "two rounds without the device")
            ip("link", "set", OUTSIDE, "up")

        thread = threading.Thread(target=cut)
        thread.start()
        ended = fleet.run("--name", "cut")
        thread.join()
        assert ended.returncode == 0, ended.stdout + tail(fleet.log, 60)
        absent = absences(fleet)
        assert {2, 3} <= set(absent)
        assert max(absent) < CONFIG["rounds"]  # it came back, and took part
        config = make_config({**DEFAULTS, **CONFIG})
        in_process = run(make_scenario(config), Partial(make_scenario(config), absent))
        assert_same_bits(fleet.state("cut"), in_process[-1].state)


def absences(fleet: RealFleet) -> dict[int, set[int]]:
    """Which devices each round closed without."""
    found: dict[int, set[int]] = {}
    gone: set[int] = set()
    for event in fleet.events("cut"):
        if event["event"] == "absent":
            gone.add(event["device"])
        if event["event"] == "step":
            if gone:
                found[event["round"]] = gone
            gone = set()
    return found
