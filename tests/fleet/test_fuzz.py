"""Mutated folders of fleets and devices: each is read, or refused in one line, and never worse."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkit.config import make_config
from fedkit.core.errors import FedkitError
from fedkit.device.data import load_examples
from fedkit.fleet.commands import device_command, server_command
from fedkit.fleet.folder import (
    Fleet,
    make_fleet,
    open_device,
    open_fleet,
    parse_address,
    read_nodes,
)
from fedkit.server.events import EVENTS, EventLog
from fedkit.server.status import FleetStatus
from fedkit.tasks.task import Examples
from sim.simulation import APP

BITS = ["\n", "\0", '"', "'", "=", "[", "]", "{", "}", "-", "1e999", "nan", "true", "[[", "\\u0000",
        "999999999999999999999999", "\ud7ff", "../", "%n", "\x1b[2J", "port",
        "device", ":", " "]  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Data with some bytes changed, cut out, doubled or put in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(5):
            case 0:
                out[at : at + 1] = rng.randbytes(1)
            case 1:
                del out[at : at + rng.choice((1, 4, 100))]
            case 2:
                out[at:at] = out[at : at + rng.choice((1, 16))]
            case 3:
                out[at:at] = rng.choice(BITS).encode()
            case 4:
                del out[at:]
    return bytes(out)


def device(folder: Path) -> object:
    about = open_device(folder)
    return device_command(folder, about)


def fleet_of(folder: Path) -> object:
    found = open_fleet(folder)
    return server_command(found)


def nodes(folder: Path) -> object:
    found = read_nodes(Fleet(folder, "host", 8000, 2))
    assert all(type(key) is int and 0 <= value < 2 for key, value in found.items())
    return found


def data(folder: Path) -> object:
    found = load_examples(str(folder / "data.npz"))
    assert isinstance(found, Examples) and np.isfinite(found.inputs).all()
    return found


def address(folder: Path) -> object:
    return parse_address((folder / "address").read_text(encoding="utf-8", errors="replace"))


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "device": ("device.toml", device),
    "fleet": ("fleet.toml", fleet_of),
    "nodes": ("server/nodes.json", nodes),
    "data": ("data.npz", data),
    "address": ("address", address),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet's files and a device's, side by side."""
    root = tmp_path_factory.mktemp("fuzz")
    made = make_fleet(root / "fleet", "host:8000", make_config({"devices": 2}), APP, insecure=False)
    shutil.copytree(made.device(1), made.path, dirs_exist_ok=True)
    (made.server / "nodes.json").write_text('{"12345678901234567890": 0, "7": 1}\n')
    (made.path / "address").write_text("[2001:db8::10]:8000")
    targets = np.arange(4, dtype=np.int64)
    np.savez(made.path / "data.npz", inputs=np.ones((4, 1, 2, 2), np.float32), targets=targets)
    for name, read in READERS.values():
        assert read(made.path), name
    return made.path


def check_mutated(folder: Path, kind: str, seeds: range) -> None:
    name, read = READERS[kind]
    whole = (folder / name).read_bytes()
    refused = 0
    try:
        for seed in seeds:
            (folder / name).write_bytes(mutated(whole, random.Random(seed)))
            try:
                read(folder)
            except FedkitError:
                refused += 1
            except BaseException as error:
                raise AssertionError(f"{kind} of seed {seed}: {error!r}") from error
    finally:
        (folder / name).write_bytes(whole)
    assert refused > len(seeds) / 10


@pytest.mark.parametrize("kind", READERS)
def test_mutated_files_are_read_or_refused(folder: Path, kind: str) -> None:
    check_mutated(folder, kind, range(200))


def test_mutated_events_are_read_or_passed_over(tmp_path: Path) -> None:
    path = tmp_path / EVENTS
    log = EventLog(path)
    log("serve", resume=False, devices=2, rounds=3)
    log("answer", device=1, bytes=10, peak_bytes=20)
    log("absent", device=0, phase="train")
    error = {"name": "mean error", "higher_is_better": False, "form": ".3g"}
    step = {"density": 0.5, "accuracy": None, "bytes_down": 1, "bytes_up": 2, "metric": error}
    log("step", phase="round", round=1, **step)
    whole = path.read_bytes()
    assert FleetStatus.of(path).devices[1].answers == 1
    assert FleetStatus.of(path).measure.text(0.1234) == "0.123"
    for seed in range(400):
        path.write_bytes(mutated(whole, random.Random(seed)))
        status = FleetStatus.of(path)
        assert status.measure.text(0.5)
        json.dumps({**vars(status), "devices": [vars(each) for each in status.devices.values()]})
    path.write_bytes(whole + b"\0" * 100 + b"[1]\n3\n{}\n" + b"[" * 9999)
    assert FleetStatus.of(path).round == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_two_thousand_mutated_files_of_each_kind_are_read_or_refused(
    folder: Path, kind: str
) -> None:
    check_mutated(folder, kind, range(200, 2200))
