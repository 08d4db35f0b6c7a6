"""Orders come from the fleet's owner alone: another account, and another's app, get nowhere.

A real server and a real device, attacked by an account of the same machine that has nothing but
the certificate of the authority, which is not secret.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedkit.fleet.commands import environment
from fedkit.flower.supernode import APP
from tests.fleet.one_device import CONFIG
from tests.fleet.real import RealFleet

NOBODY = 65534
FLWR = str(Path(sys.executable).with_name("flwr"))

AS_NOBODY = (
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
    # Python itself may lie in root's home.
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can act as another account, with setpriv of util-linux",
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFleet]:
    with RealFleet(tmp_path_factory.mktemp("orders"), CONFIG) as made:
        made.start_server()
        made.start_device(0)
        made.wait_for(lambda: made.said("SuperNode ID"), "the device to connect")
        yield made


@pytest.fixture(scope="module")
def stranger(fleet: RealFleet) -> Iterator[Path]:
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


def test_another_account_of_the_machine_can_start_no_run(fleet: RealFleet, stranger: Path) -> None:
    said = flwr(stranger, "run", "app", "fleet")
    assert "403" in said, said
    assert not (stranger / "ran").exists()


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


def ask(stranger: Path, *urls: str) -> list[str]:
    ended = subprocess.run(
        [*AS_NOBODY, sys.executable, "-c", ASK, str(stranger / "ca.crt"), *urls],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_another_account_can_ask_neither_server_nor_device(
    fleet: RealFleet, stranger: Path
) -> None:
    server = f"https://127.0.0.1:{fleet.fleet.port}"
    found = re.search(r"fedkit\.flower\.supernode.* --port (\d+)", fleet.log.read_text())
    assert found
    device = f"http://127.0.0.1:{found[1]}"
    both = ("/v1/runtime/acquire-task", "/v1/runtime/pull-task-input", "/docs", "/openapi.json")
    orders = ("start-run", "stop-run", "list-runs", "stream-logs", "list-nodes", "register-node")
    asked = [f"{end}{path}" for end in (server, device) for path in both]
    asked += [f"{server}/v1/control/{order}" for order in orders]
    assert ask(stranger, *asked) == ["403"] * len(asked)
    # A request without the device's key does not count, whatever its sender.
    assert ask(stranger, f"{server}/v1/fleet/pull-messages")[0] in ("401", "422", "400", "415")


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
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    (node,) = grid.get_node_ids()
    message = Message(RecordDict(), dst_node_id=node, message_type="train")
    (reply,) = grid.send_and_receive([message], timeout=600)
    print("answered:", reply.error.reason if reply.has_error() else "it ran", flush=True)
"""
