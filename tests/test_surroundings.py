"""Proxies, folders and files around a command that are not as it would like them."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fedkit.cli import app, main
from fedkit.cli.modules import in_the_way
from fedkit.config import make_config
from fedkit.core.errors import ConfigError, FedkitError, FleetError
from fedkit.core.lookup import find
from fedkit.flower import fleet as flower_fleet
from fedkit.flower.fleet import FlowerFleet
from fedkit.flower.processes import answers, free_port, past_proxies
from fedkit.flower.run_config import SERVER_KEYS, errors_first, read_run_config
from sim.simulation import APP, LONGEST_RAY_FOLDER, check_ray_folder
from tests.fleet.grids import ScriptedGrid
from tests.sets import slow
from tests.whole_runs import KEYS, flags, state, whole_run

ROOT = Path(__file__).resolve().parents[1]
SMALL = "run --devices 2 --rounds 1 --epochs 1 --examples-per-device 30 --name r"

# Proxies

PROXIES = [name for each in ("http", "https", "all") for name in (f"{each}_proxy", f"{each}_PROXY")]
PROXIES += [name.upper() for name in PROXIES[::2]] + ["grpc_proxy"]


@contextmanager
def loopback() -> Iterator[str]:
    """A server of this machine that answers everything with 200."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/health"
        server.shutdown()
        thread.join()


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment names a proxy that refuses every connection."""
    proxy = f"http://127.0.0.1:{free_port()}"
    for name in PROXIES:
        monkeypatch.setenv(name, proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return proxy


def test_questions_to_this_machine_pass_by_proxies(
    refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loopback() as url:
        with pytest.raises(httpx.HTTPError):
            httpx.get(url)
        assert answers(url)
        for name, value in past_proxies(os.environ).items():
            monkeypatch.setenv(name, value)
        assert httpx.get(url).status_code == 200
        with pytest.raises(httpx.HTTPError):  # Others still go through it.
            httpx.get("http://192.0.2.1/", timeout=1)


def test_what_needs_no_proxy_already_stays_so() -> None:
    given = {"no_proxy": "intern.example, 10.0.0.1", "NO_PROXY": "10.0.0.1,.other"}
    found = past_proxies(given)
    wanted = "intern.example,10.0.0.1,.other,localhost,127.0.0.1,::1"
    assert {found["no_proxy"], found["NO_PROXY"], found["no_grpc_proxy"]} == {wanted}


def test_a_socks_proxy_does_not_stop_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"ALL_PROXY": f"socks5://127.0.0.1:{free_port()}"}
    for name, value in {**given, **past_proxies(given)}.items():
        monkeypatch.setenv(name, value)
    with loopback() as url:
        assert httpx.get(url).status_code == 200


@pytest.mark.slow
def test_a_run_through_flower_ends_behind_a_proxy_and_beside_files_named_like_modules(
    refusing: str, tmp_path: Path
) -> None:
    for name in ("random", "sim", "edge", "typing", "server_app"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    (tmp_path / "my_task.py").write_text(
        "from dataclasses import replace\nfrom fedkit.tasks import load_task\n"
        "TASK = replace(load_task('digits'), name='mine')\n"
    )
    keys = {**KEYS, "rounds": 2, "task": "my_task:TASK"}
    command = [sys.executable, "-m", "fedkit", "run", *flags(keys), "--name", "r"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    own = {**keys, "task": "digits"}
    assert state(tmp_path / "runs" / "r") == whole_run(tmp_path / "whole", own)


# Files named like modules

SHADOWS = ("random", "sim", "edge", "typing", "json", "socket", "numpy", "torch", "rich")


@pytest.fixture
def shadowed(tmp_path: Path) -> Path:
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user was run')\n")
    (tmp_path / "my_task.py").write_text("from fedkit.tasks import load_task\nTASK = 1\n")
    return tmp_path


@pytest.mark.parametrize("program", [slow([sys.executable, "-m", "fedkit"]), ["fedkit"]], ids=str)
def test_a_file_of_the_users_takes_no_modules_place(program: list[str], shadowed: Path) -> None:
    if program == ["fedkit"]:
        program = [str(Path(sys.executable).with_name("fedkit"))]
        (shadowed / "fedkit.py").write_text("raise SystemExit('a file of the user was run')\n")
    command = [*program, "plan", "x.plan", "--task", "my_task:TASK"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    ended = subprocess.run(command, cwd=shadowed, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert "task path 'my_task:TASK' leads to a int" in " ".join(ended.stderr.split())


@pytest.mark.parametrize("before", [None, "", "1"])
def test_what_is_set_for_children_is_taken_back(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PYTHONSAFEPATH", before)
    during = []
    monkeypatch.setattr(app, "app", lambda: during.append(os.environ["PYTHONSAFEPATH"]))
    main()
    assert during == ["1"] and os.environ.get("PYTHONSAFEPATH") == before


def test_what_pythonpath_puts_in_the_way_is_named(shadowed: Path) -> None:
    program = [str(Path(sys.executable).with_name("fedkit")), "show", "x"]
    for name in SHADOWS[:6]:
        for other in SHADOWS:
            (shadowed / f"{other}.py").unlink(missing_ok=True)
        (shadowed / f"{name}.py").write_text("raise SystemExit('a file of the user was run')\n")
        environment = {**os.environ, "PYTHONPATH": str(shadowed)}
        ended = subprocess.run(program, env=environment, capture_output=True, text=True)
        assert ended.returncode == 2, ended.stderr
        assert f"{shadowed}/{name}.py is in the way" in ended.stderr


def test_nothing_is_in_the_way_of_the_tests() -> None:
    assert in_the_way() == ""


def test_a_task_named_like_a_module_is_told_whose_name_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("statistics", "numpy"):
        (tmp_path / f"{name}.py").write_text("TASK = 1\n")
        with pytest.raises(ImportError, match=rf"{name}\.py cannot be imported as '{name}'"):
            find(f"{name}:TASK")
    (tmp_path / "of_their_own.py").write_text("TASK = 7\n")
    assert find("of_their_own:TASK") == 7


# Waiting


class Nodes:
    """A grid to which so many nodes are connected."""

    def __init__(self, count: int) -> None:
        self.count = count

    def get_node_ids(self) -> list[int]:
        return list(range(self.count))


@pytest.mark.parametrize("there", [0, 1, 2])
def test_who_watches_is_told_at_once_what_a_run_waits_for(
    there: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flower_fleet, "_TELL_SECONDS", 0.3)
    events: list[tuple[str, int]] = []

    def log(event: str, **fields: int) -> None:
        events.append((event, fields["connected"]))

    config = make_config({"devices": 3, "deadline": 1.0})
    with pytest.raises(FleetError, match=f"{there} of 3 devices connected"):
        FlowerFleet(Nodes(there), config, log=log)  # type: ignore[arg-type]
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{there} of 3 devices are there; waiting up to 1 s")
    assert 2 <= len(told) == len(events) and set(events) == {("waiting", there)}


def test_nobody_is_told_where_all_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    FlowerFleet(Nodes(3), make_config({"devices": 3}))  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""


# Temporary folders


def test_a_temporary_folder_too_long_for_sockets_is_named_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(
        sys, "argv", ["fedkit", *SMALL.split(), "--backend", "ray", "--out", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    told = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2
    assert f"TMPDIR is {tmp_path}" in told and "RAY_TMPDIR=/tmp" in told
    assert not (tmp_path / "out").exists()


def test_the_longest_folder_leaves_room_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket can be bound at the path that Ray will use, and at none that is longer."""
    import socket

    below = "/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store"
    for length in (LONGEST_RAY_FOLDER, LONGEST_RAY_FOLDER + 1):
        folder = f"/tmp/{'y' * (length - 5)}"
        monkeypatch.setenv("RAY_TMPDIR", folder)
        with socket.socket(socket.AF_UNIX) as probe:
            if length == LONGEST_RAY_FOLDER:
                check_ray_folder()
                with pytest.raises(FileNotFoundError):  # There is no such folder; the path is fine.
                    probe.bind(folder + below)
            else:
                with pytest.raises(FedkitError, match=f"{length} bytes long"):
                    check_ray_folder()
                with pytest.raises(OSError, match="too long"):
                    probe.bind(folder + below)


# Run-configs of Flower


def test_a_wrong_value_of_a_run_config_is_printed_by_its_key(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {**SERVER_KEYS, **make_config({}).as_dict()}
    grid = ScriptedGrid({})
    assert read_run_config(given, grid)[0] == make_config({})
    with pytest.raises(ConfigError), errors_first():
        read_run_config({**given, "density": 7}, grid)
    assert capsys.readouterr().out.startswith("error: density is 7: input should be less than")


def test_the_server_app_needs_no_torch_to_say_so() -> None:
    """What it imports before it has looked at the keys takes no seconds."""
    # Flower puts the app's folder on the path itself; a safe path from the environment would not.
    program = (
        "import sys; sys.path.insert(0, '.'); import server_app; print('torch' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=APP, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "False\n"
