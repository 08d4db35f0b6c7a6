"""End to end: TLS, keys, a SuperLink and SuperNodes as real processes, the bits of one process.

One fleet for all tests: to start one takes most of their time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
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
from fedkit.fleet.commands import environment
from fedkit.fleet.keys import write_authority, write_device_key
from fedkit.flower.processes import kill_marked, marked, stop_group, tail
from fedkit.flower.supernode import APP
from fedkit.server.rounds import LocalFleet, run_rounds
from fedkit.server.scenario import server_scenario
from fedkit.sparse.state import ModelState
from sim.scenario import make_scenario
from tests.fleet.command import command
from tests.fleet.real import FEDKIT, RealFleet
from tests.flower.same_bits import assert_same_bits
from tests.processes import HANG

CONFIG: dict[str, Any] = {
    "devices": 2,
    "partition": "iid",
    "examples_per_device": 24,
    "test_examples": 60,
    "pool_size": 2,
    "rounds": 1,
    "epochs": 1,
    "batch_size": 12,
    "adjust_every": 1,
    "adjust_stop": 1,
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
        kill_marked(f"FLWR_HOME={made.fleet.server / 'flwr'}")


def test_devices_without_torch_over_tls_end_with_the_bits_of_one_process(fleet: RealFleet) -> None:
    code, out, said = command("fleet", "run", fleet.fleet.path, "--name", "first", "--json")
    assert code == 0, said + tail(fleet.log, 60)
    told = json.loads(out.splitlines()[-1])
    assert (told["rounds"], told["devices"]) == (CONFIG["rounds"], CONFIG["devices"])
    assert "https" not in said and "--stream" in said  # the command is shown
    config = make_config({**DEFAULTS, **CONFIG})
    assert_same_bits(fleet.state("first"), in_process(config, fleet))

    answers = [event for event in fleet.events("first") if event["event"] == "answer"]
    assert len(answers) == 2 * (2 + CONFIG["rounds"])  # a message per device and round, no more
    assert all(30e6 < event["peak_bytes"] < 400e6 for event in answers)
    metrics = (fleet.fleet.runs / "first" / "metrics.prom").read_text()
    assert 'fedkit_device_answers{device="1"} 3.0' in metrics

    shown = subprocess.run(
        [FEDKIT, "fleet", "status", str(fleet.fleet.path), "--json"], capture_output=True, text=True
    )
    status = json.loads(shown.stdout)
    assert (status["server"], status["run"], status["round"]) == ("up", "first", 1)
    assert [device["connection"] for device in status["devices"]] == ["online"] * 2
    assert [device["answers"] for device in status["devices"]] == [3] * 2


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
    code, said = start(folder, HANG)
    assert code not in (None, 0)
    assert "Failed to initialize the connection to the SuperLink" in said


@pytest.mark.slow
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


# Orders come from the fleet's owner alone: another account, and another's app, get nowhere.
# Another account of the machine has nothing but the certificate of the authority, no secret.

NOBODY = 65534
FLWR = str(Path(sys.executable).with_name("flwr"))

AS_NOBODY = (
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
    # Python itself may lie in root's home.
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip

ROOT_ONLY = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can act as another account, with setpriv of util-linux",
)


@pytest.fixture(scope="module")
def other_account(fleet: RealFleet) -> Iterator[Path]:
    """The home of another account: Flower's settings, the authority's certificate, an app."""
    home = Path(tempfile.mkdtemp(prefix="fedkit-stranger-"))
    try:
        shutil.copy(fleet.fleet.server / "ca.crt", home / "ca.crt")
        settings = (fleet.fleet.server / "flwr" / "config.toml").read_text()
        certificate = json.dumps(str(fleet.fleet.server / "ca.crt"))
        assert certificate in settings
        (home / "config.toml").write_text(
            settings.replace(certificate, json.dumps(str(home / "ca.crt")))
        )
        evil_app(home / "app", home / "ran")
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        yield home
    finally:
        shutil.rmtree(home)


def evil_app(folder: Path, proof: Path) -> None:
    """An app whose both ends leave a proof that they ran."""
    shutil.copytree(APP, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("client_app.py", "server_app.py"):
        code = (folder / name).read_text()
        (folder / name).write_text(f"open({str(proof)!r}, 'a').write('{name} ')\n{code}")


def flwr(home: Path, *arguments: str, account: tuple[str, ...] = AS_NOBODY) -> str:
    """What a command of Flower's says to an account."""
    ended = subprocess.run(
        [*account, FLWR, *arguments],
        env={**environment(home), "HOME": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return ended.stdout + ended.stderr


@ROOT_ONLY
def test_another_account_of_the_machine_can_start_no_run(
    fleet: RealFleet, other_account: Path
) -> None:
    said = flwr(other_account, "run", "app", "fleet")
    assert "403" in said, said
    assert not (other_account / "ran").exists()


ASK = """
import ssl, sys, urllib.error, urllib.request
trusted = ssl.create_default_context(cafile=sys.argv[1])
for url in sys.argv[2:]:
    request = urllib.request.Request(url, data=b"", headers={"X-Forwarded-For": "127.0.0.1"})
    try:
        print(urllib.request.urlopen(request, context=trusted, timeout=600).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""


def ask(other_account: Path, *urls: str) -> list[str]:
    ended = subprocess.run(
        [*AS_NOBODY, sys.executable, "-c", ASK, str(other_account / "ca.crt"), *urls],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


@ROOT_ONLY
def test_another_account_can_ask_neither_server_nor_device(
    fleet: RealFleet, other_account: Path
) -> None:
    server = f"https://127.0.0.1:{fleet.fleet.port}"
    found = re.search(r"fedkit\.flower\.supernode.* --port (\d+)", fleet.log.read_text())
    assert found
    device = f"http://127.0.0.1:{found[1]}"
    both = ("/v1/runtime/acquire-task", "/v1/runtime/pull-task-input", "/docs", "/openapi.json")
    orders = ("start-run", "stop-run", "list-runs", "stream-logs", "list-nodes", "register-node")
    asked = [f"{end}{path}" for end in (server, device) for path in both]
    asked += [f"{server}/v1/control/{order}" for order in orders]
    assert ask(other_account, *asked) == ["403"] * len(asked)
    # A request without the device's key does not count, whatever its sender.
    assert ask(other_account, f"{server}/v1/fleet/pull-messages")[0] in ("401", "422", "400", "415")


def test_another_account_can_read_nothing_of_a_fleet(fleet: RealFleet) -> None:
    code = (
        "import os, sys\n"
        "for folder, names, files in os.walk(sys.argv[1]):\n"
        "    for path in [folder, *(os.path.join(folder, file) for file in files)]:\n"
        "        mode = os.lstat(path).st_mode\n"
        "        assert os.path.islink(path) or not mode & 0o077, (path, oct(mode))\n"
    )
    whole = subprocess.run(
        [sys.executable, "-c", code, str(fleet.fleet.path)], capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    assert (fleet.fleet.server / "flower.db").stat().st_mode & 0o777 == 0o600
    assert (fleet.fleet.device(0) / "data.npz").stat().st_mode & 0o777 == 0o600


def test_a_device_runs_no_app_but_its_own(fleet: RealFleet, tmp_path: Path) -> None:
    """Also where the owner's own account, or somebody who took the server over, sends it."""
    evil_app(tmp_path / "app", tmp_path / "ran")
    (tmp_path / "app" / "server_app.py").write_text(SEND_ONE)
    said = flwr(fleet.fleet.server / "flwr", "run", str(tmp_path / "app"), "fleet", "--stream",
                account=())  # fmt: skip
    assert "answered: this device runs the app of its own fedkit" in said, said
    fleet.wait_for(lambda: fleet.said("refused the app"), "the device's words")
    assert not (tmp_path / "ran").exists()


SEND_ONE = """
import time

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    node, *_ = grid.get_node_ids()
    message = Message(RecordDict(), dst_node_id=node, message_type="train")
    sent = list(grid.push_messages([message]))
    while not (replies := list(grid.pull_messages(sent))):
        time.sleep(0.2)
    (reply,) = replies
    print("answered:", reply.error.reason if reply.has_error() else "it ran", flush=True)
"""


# The last test here: what was killed is started again, at once and with nothing else to do


def kill_alone(fleet: RealFleet, name: str) -> None:
    """Kill a program of ours, and nothing that it started."""
    process = fleet._running.pop(name)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_server_that_was_killed_is_started_again(fleet: RealFleet) -> None:
    """Whatever the killed one left behind, holding its port."""
    kill_alone(fleet, "server")
    fleet.start_server()
    assert fleet.alive("server")
    assert not fleet.said("Address already in use")
    assert marked(f"FLWR_HOME={fleet.fleet.server / 'flwr'}")
