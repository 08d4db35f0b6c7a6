"""End to end: TLS, keys, a SuperLink and SuperNodes as real processes, the bits of one process."""

from __future__ import annotations

import contextlib
import json
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from fedkit.cli.fleet import DEFAULTS
from fedkit.config import RunConfig, make_config
from fedkit.device.round import Device
from fedkit.engine.plan.plan import load_plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.fleet.keys import write_authority, write_device_key
from fedkit.flower.processes import kill_marked, stop_group, tail
from fedkit.server.rounds import LocalFleet, run_rounds
from fedkit.server.scenario import server_scenario
from fedkit.sparse.state import ModelState
from sim.scenario import make_scenario
from tests.fleet.real import FEDKIT, RealFleet
from tests.flower.same_bits import assert_same_bits

CONFIG: dict[str, Any] = {
    "devices": 2,
    "partition": "iid",
    "examples_per_device": 24,
    "test_examples": 60,
    "pool_size": 2,
    "rounds": 2,
    "epochs": 1,
    "batch_size": 12,
    "adjust_every": 1,
    "adjust_stop": 2,
    "server_epochs": 1,
    "sparse_epochs": 2,
}


def in_process(config: RunConfig, fleet: RealFleet) -> ModelState:
    """The same run in this process: the server's part as it is, devices from their own folders."""
    shares = make_scenario(config).devices
    if config.engine == "torch":
        devices = [make_scenario(config).device(index) for index in range(config.devices)]
    else:
        engine = SparseEngine(load_plan(fleet.fleet.device(0) / "model.plan"))
        devices = [Device(i, share, engine, config) for i, share in enumerate(shares)]
    server = server_scenario(config)
    *_, last = run_rounds(server.server(), LocalFleet(devices), server.server_data)
    return last.state


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, without_torch: dict[str, str]
) -> Iterator[RealFleet]:
    """Two devices that cannot import torch, connected."""
    with RealFleet(tmp_path_factory.mktemp("fleet"), CONFIG) as made:
        made.start_server()
        for index in range(made.fleet.devices):
            made.start_device(index, PYTHONPATH=without_torch["PYTHONPATH"])
        yield made


def test_devices_without_torch_over_tls_end_with_the_bits_of_one_process(fleet: RealFleet) -> None:
    ended = fleet.run("--name", "first")
    assert ended.returncode == 0, ended.stdout + tail(fleet.log, 60)
    assert "https" not in ended.stdout and "--stream" in ended.stdout  # the command is shown
    config = make_config({**DEFAULTS, **CONFIG})
    assert_same_bits(fleet.state("first"), in_process(config, fleet))

    answers = [event for event in fleet.events("first") if event["event"] == "answer"]
    assert len(answers) == 2 * (2 + CONFIG["rounds"])  # a message per device and round, no more
    assert all(30e6 < event["peak_bytes"] < 400e6 for event in answers)
    metrics = (fleet.fleet.runs / "first" / "metrics.prom").read_text()
    assert 'fedkit_device_answers{device="1"} 4.0' in metrics

    shown = subprocess.run(
        [FEDKIT, "fleet", "status", str(fleet.fleet.path), "--json"], capture_output=True, text=True
    )
    status = json.loads(shown.stdout)
    assert (status["server"], status["run"], status["round"]) == ("up", "first", 2)
    assert [device["connection"] for device in status["devices"]] == ["online"] * 2
    assert [device["answers"] for device in status["devices"]] == [4] * 2


def stranger(fleet: RealFleet, folder: Path, name: str) -> Path:
    """A copy of a device's folder in other hands."""
    copy = folder / name
    shutil.copytree(fleet.fleet.device(0), copy, ignore=shutil.ignore_patterns("flwr", "state"))
    return copy


def start(folder: Path, seconds: float) -> tuple[int | None, str]:
    """Start a device by itself; return its exit code, None if it still tries, and its words."""
    log = folder.with_name(f"{folder.name}.log")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [FEDKIT, "fleet", "device", str(folder)],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    code = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = process.wait(seconds)
    stop_group(process)
    kill_marked(f"FLWR_HOME={folder / 'flwr'}")
    return code, log.read_text(errors="replace")


def test_a_device_whose_key_nobody_registered_is_refused(fleet: RealFleet, tmp_path: Path) -> None:
    folder = stranger(fleet, tmp_path, "stranger")
    for name in ("device.key", "device.key.pub"):
        (folder / name).unlink()
    write_device_key(folder)
    code, said = start(folder, 60)
    assert code not in (None, 0)
    assert "Failed to initialize the connection to the SuperLink" in said


def test_a_device_that_trusts_another_authority_does_not_talk_to_the_server(
    fleet: RealFleet, tmp_path: Path
) -> None:
    folder = stranger(fleet, tmp_path, "other-authority")
    (tmp_path / "other").mkdir()
    write_authority(tmp_path / "other", "other")
    shutil.copy(tmp_path / "other" / "ca.crt", folder / "ca.crt")
    code, said = start(folder, 12)
    assert code != 0  # It may try for ever.
    assert "SuperNode ID" not in said  # what one says that got in
    assert "SuperNode ID" in fleet.log.read_text()


@pytest.mark.slow
def test_devices_with_torch_end_with_the_bits_of_one_process(tmp_path: Path) -> None:
    config = {**CONFIG, "engine": "torch", "selection": "none"}
    with RealFleet(tmp_path, config) as fleet:
        fleet.start_server()
        fleet.start_devices()
        ended = fleet.run("--name", "torch")
        assert ended.returncode == 0, ended.stdout + tail(fleet.log, 60)
        assert_same_bits(
            fleet.state("torch"), in_process(make_config({**DEFAULTS, **config}), fleet)
        )


def test_what_is_secret_is_readable_by_its_owner_alone(fleet: RealFleet) -> None:
    path = fleet.fleet.path
    secret = [
        *path.glob("devices/*/device.key"),
        path / "server/server.key",
        path / "authority/ca.key",
    ]
    assert len(secret) == 4
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in secret)
    assert not list(path.glob("devices/*/ca.key")) and not (path / "server/ca.key").exists()
    certificate = x509.load_pem_x509_certificate((path / "server/server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "127.0.0.1" in [str(name) for name in names.get_values_for_type(x509.IPAddress)]
