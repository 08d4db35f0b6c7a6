"""`fedkit fleet` for people: what is refused, with which words, and that nothing is left behind."""

from __future__ import annotations

import fcntl
import json
import re
import socket
from pathlib import Path

import pytest

from fedkit.cli.fleet_run import _tell_other_app
from fedkit.cli.fleet_server import warn_root
from fedkit.fleet.folder import open_fleet
from fedkit.server.checkpoint import RunFolder
from fedkit.server.rounds import Report
from fedkit.server.scenario import server_scenario
from tests.fleet.command import command


def fedkit(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command of `fedkit fleet`; see `command`."""
    return command("fleet", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "fleet"
    code, out, said = fedkit("init", path, "--devices", "2", "--insecure", "--json")
    assert code == 0, said
    about = {"fleet": str(path), "devices": 2, "address": "127.0.0.1:8000"}
    assert json.loads(out.splitlines()[-1]) == about
    assert f"fedkit fleet run {path}" in said  # what comes next
    return path


def test_a_new_fleet_has_a_plan_for_each_device_and_no_data(folder: Path) -> None:
    names = {path.name for path in (folder / "devices" / "device-001").iterdir()}
    assert "model.plan" in names and "data.npz" not in names
    assert "min_share = 0.5" in (folder / "run.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("init", "{new}", "--devices", "none"), "devices is 'none'"),
        (("init", "{new}", "--address", "nowhere"), "must be host:port"),
        (("init", "{new}", "--address", "10.0.0.1:80", "--insecure"), "it is for 127.0.0.1 only"),
        (("init", "{new}", "--task", "nothing"), "nothing"),
        (("init", "{new}", "--dp-clip", "1.0"), "is not private all the same"),
        (("init", "{fleet}"), "exists and is never overwritten"),
        (("server", "{new}"), "make a fleet with: fedkit fleet init"),
        (("device", "{new}"), "device.toml cannot be read"),
        (("status", "{new}"), "fleet.toml cannot be read"),
        (("run", "{fleet}", "--resume", "last"), "there is no run 'last'"),
        (("run", "{fleet}", "--rounds", "0"), "rounds is '0'"),
        (("run", "{fleet}", "--name", "../../x"), "cannot name a run"),
        (("run", "{fleet}", "--name", "/tmp/x"), "cannot name a run"),
        (("run", "{fleet}", "--name", ".."), "cannot name a run"),
        (("run", "{fleet}", "--name", "a\nb"), "cannot name a run"),
        (("run", "{fleet}", "--name", "x" * 300), "cannot name a run"),
        (("run", "{fleet}", "--resume", "../server"), "cannot name a run"),
        (("run", "{fleet}", "--model", "ds-cnn"), "ds-cnn"),
        (("run", "{fleet}", "--model", "resnet18-w16"), "whose plan the devices were given"),
        (("run", "{fleet}", "--task", "fashion-mnist"), "fashion-mnist"),
        (("run", "{fleet}", "--density", "0.0001"), "density"),
        (("init", "{new}", "--address", "evil host;x:8000"), "must be host:port"),
        (("init", "{new}", "--address", "https://host:8000"), "must be host:port"),
        (("init", "{new}/no/such\n", "--devices", "1"), "systemd unit"),
        (("init", "/proc/none/fleet", "--devices", "1"), "cannot be made: No such file"),
        (("init", "{new}" + "x" * 300, "--devices", "1"), "cannot be made: File name too long"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    new = tmp_path / "new"
    code, _, said = fedkit(*(each.format(new=new, fleet=folder) for each in arguments))
    assert code == 2
    assert words in said
    assert list(tmp_path.iterdir()) == []


def test_the_status_of_a_fleet_that_is_not_up(folder: Path) -> None:
    code, out, _ = fedkit("status", folder, "--json")
    status = json.loads(out)
    assert code == 0
    assert status["server"].startswith("down")
    assert [device["connection"] for device in status["devices"]] == ["unknown"] * 2


@pytest.mark.slow
def test_a_run_without_a_server_says_so(folder: Path) -> None:
    code, _, said = fedkit("run", folder, "--name", "alone", "--rounds", "1")
    assert code == 2
    assert "after 0 of 1 rounds" in said
    assert not (folder / "runs" / "alone").exists()


def test_a_finished_run_is_left_as_it_is_and_a_damaged_file_is_named(folder: Path) -> None:
    config, fleet = open_fleet(folder).config, open_fleet(folder)
    config = config.changed(rounds=1)
    scenario = server_scenario(config)
    done = RunFolder.create(fleet.runs / "done", config)
    state = scenario.engine.initial_state()
    done.append(Report("round", 1, 0.5, None, 1.0, 0, 0, state), scenario.engine.layout, {})
    before = {path: path.read_bytes() for path in done.path.rglob("*") if path.is_file()}
    code, _, said = fedkit("run", folder, "--resume", "done")
    assert code == 0 and "is finished; nothing is left to do; look at it with" in said
    assert before == {path: path.read_bytes() for path in done.path.rglob("*") if path.is_file()}

    for name, text in (
        ("nodes.json", "[1"),
        ("nodes.json", '{"a": 0}'),
        ("nodes.json", '{"1": 9}'),
    ):
        (fleet.server / name).write_text(text)
        code, _, said = fedkit("status", folder)
        assert code == 2 and "does not say which node is which device" in said
    (fleet.server / "nodes.json").unlink()


def test_another_app_than_fedkits_is_told_with_its_digest(folder: Path) -> None:
    app = open_fleet(folder).server / "app" / "client_app.py"
    own = app.read_text()
    said: list[str] = []
    _tell_other_app(open_fleet(folder), said.append)
    assert said == []
    app.write_text(f"{own}\n# mine\n")
    _tell_other_app(open_fleet(folder), said.append)
    app.write_text(own)
    assert "devices refuse it unless" in said[0] and re.search('app = "[0-9a-f]{64}"', said[0])


def test_root_is_warned_and_others_are_sent_to_the_owner(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("os.geteuid", lambda: 0)
    warn_root(said.append)
    assert len(said) == 1 and "root" in said[0]
    monkeypatch.setattr("os.geteuid", lambda: 4_000_001)
    warn_root(said.append)
    assert len(said) == 1
    for arguments in (
        ("run", folder),
        ("server", folder),
        ("device", folder / "devices/device-000"),
    ):
        code, _, words = fedkit(*arguments)
        assert code == 2 and "orders are taken from its owner alone" in words


def test_one_server_runs_at_a_time_and_a_taken_port_is_named(folder: Path) -> None:
    fleet = open_fleet(folder)
    with (fleet.server / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, said = fedkit("server", folder)
    assert code == 2 and "runs already" in said
    with socket.create_server(("127.0.0.1", 0)) as other:
        text = (folder / "fleet.toml").read_text()
        (folder / "fleet.toml").write_text(
            text.replace("port = 8000", f"port = {other.getsockname()[1]}")
        )
        code, _, said = fedkit("server", folder)
        (folder / "fleet.toml").write_text(text)
    assert code == 2 and "cannot listen on 127.0.0.1" in said and "Address already in use" in said
