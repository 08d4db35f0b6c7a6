"""Devices that come later, go, and get new keys, in folders and at a real server."""

from __future__ import annotations

import datetime
import json
import shutil
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cryptography import x509

from fedkit.cli.fleet_server import _tell_of_end
from fedkit.config import make_config
from fedkit.core.errors import ConfigError, FedkitError, FleetError
from fedkit.fleet import keys, members
from fedkit.fleet.folder import Fleet, make_fleet, open_device, open_fleet
from fedkit.flower.nodes import NAMES, NODES, read_names, read_nodes, write_names, write_nodes
from fedkit.flower.supernode import GHOST
from sim.simulation import APP
from tests.fleet.command import command
from tests.fleet.real import RealFleet
from tests.flower.same_bits import assert_same_bits
from tests.processes import HANG, wait_for

CONFIG = make_config({"devices": 2})


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return make_fleet(
        tmp_path / "fleet", "fleet.example:8443", CONFIG, APP, insecure=False, names=["kitchen"]
    )


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Folders


def test_a_device_that_is_added_has_what_the_others_have(fleet: Fleet) -> None:
    (fleet.server / "model.plan").write_bytes(b"a plan")
    before = files(fleet.device(0)) | files(fleet.device(1)) | files(fleet.server)
    grown = members.add_device(fleet, "attic")
    assert open_fleet(fleet.path) == grown
    assert (grown.devices, grown.names, grown.config.devices) == (3, ["kitchen", "", "attic"], 3)
    folder = grown.device(2)
    assert folder.name == "attic"
    of_the_first = {path.name for path in fleet.device(0).iterdir()}
    assert {path.name for path in folder.iterdir()} == of_the_first | {"model.plan"}
    about, first = open_device(folder), open_device(fleet.device(0))
    assert (about.device, about.superlink) == (2, first.superlink)
    assert (folder / "device.key").read_bytes() != (fleet.device(0) / "device.key").read_bytes()
    assert (folder / "device.key").stat().st_mode & 0o777 == 0o600
    assert (folder / "ca.crt").read_bytes() == (fleet.server / "ca.crt").read_bytes()
    assert "fleet device /opt/fedkit/attic" in (folder / "fedkit-device.service").read_text()
    assert before == {path: path.read_bytes() for path in before}
    assert members.add_device(grown).device(3).name == "device-003"


def test_a_folder_half_made_is_made_anew(fleet: Fleet) -> None:
    half = fleet.path / "devices" / ".attic.tmp"
    half.mkdir()
    (half / "device.key").write_text("half a key")
    members.add_device(fleet, "attic")
    assert not half.exists()


@pytest.mark.parametrize(
    "name", ["kitchen", "device-001", "1", "2", "../x", ".x", "a b", "a/b", "x" * 101, "-x", "\n"]
)
def test_a_name_that_cannot_be_or_is_anothers_changes_nothing(fleet: Fleet, name: str) -> None:
    before = files(fleet.path)
    with pytest.raises(FedkitError, match=r"cannot name a device|do not tell devices apart"):
        members.add_device(fleet, name)
    assert files(fleet.path) == before


def test_names_are_given_when_a_fleet_is_made(tmp_path: Path) -> None:
    def init(path: str, names: str) -> tuple[int, str, str]:
        given = ("--devices", "2", "--insecure", "--names", names)
        return command("fleet", "init", tmp_path / path, *given)

    assert init("good", "kitchen, hall")[0] == 0
    assert {path.name for path in (tmp_path / "good" / "devices").iterdir()} == {"kitchen", "hall"}
    code, _, said = init("bad", "a,b,c")
    assert code == 2 and "3 names are given for 2 devices" in said
    assert not (tmp_path / "bad").exists()
    for words in (("revoke", "hall"), ("renew", "--device", "hall"), ("renew",)):
        code, _, said = command("fleet", words[0], tmp_path / "good", *words[1:])
        assert code == 2 and "was made with --insecure and has no keys" in said


def test_who_is_revoked_keeps_the_number_and_is_let_go_by_the_server(fleet: Fleet) -> None:
    write_nodes(fleet.server / NODES, {111: 0, 222: 1})
    left = members.revoke_device(fleet, fleet.find("kitchen"))
    assert open_fleet(fleet.path) == left
    assert (left.devices, left.members, left.revoked) == (2, [1], [0])
    assert read_nodes(fleet.server / NODES, 2) == {222: 1}
    assert members.read_leaving(left) == {111}
    for word in ("kitchen", "0", "nobody", "-1", ""):
        with pytest.raises(FleetError, match=r"there is no device .*there are: device-001"):
            left.find(word)
    with pytest.raises(FleetError, match="is the last device of"):
        members.revoke_device(left, 1)
    assert members.add_device(left).members == [1, 2]


def test_a_device_gets_another_key(fleet: Fleet) -> None:
    write_nodes(fleet.server / NODES, {111: 0, 222: 1})
    before = files(fleet.device(1))
    folder = members.renew_device(fleet, 1)
    changed = {path.name for path, content in files(folder).items() if before[path] != content}
    assert changed == {"device.key", "device.key.pub"}
    assert (folder / "device.key").stat().st_mode & 0o777 == 0o600
    assert members.read_leaving(fleet) == {222}
    assert read_nodes(fleet.server / NODES, 2) == {111: 0}
    members.renew_device(fleet, 0)
    assert members.read_leaving(fleet) == {111, 222}


def test_the_servers_certificate_is_made_anew_by_the_same_authority(
    fleet: Fleet, tmp_path: Path
) -> None:
    safe = tmp_path / "safe"
    (fleet.path / "authority").rename(safe)
    old = x509.load_pem_x509_certificate((fleet.server / "server.crt").read_bytes())
    with pytest.raises(FleetError, match="does not hold the authority"):
        members.renew_server(fleet, fleet.path / "authority")
    code, out, said = command("fleet", "renew", fleet.path, "--authority", safe, "--json")
    assert code == 0, said
    new = x509.load_pem_x509_certificate((fleet.server / "server.crt").read_bytes())
    assert new.serial_number != old.serial_number and new.public_key() != old.public_key()
    new.verify_directly_issued_by(x509.load_pem_x509_certificate((safe / "ca.crt").read_bytes()))
    names = [c.extensions.get_extension_for_class(x509.SubjectAlternativeName) for c in (old, new)]
    assert names[0] == names[1]
    assert json.loads(out)["ends"] == new.not_valid_after_utc.isoformat()
    assert (fleet.server / "server.key").stat().st_mode & 0o777 == 0o600


def test_another_authority_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    before = files(fleet.server)
    keys.write_authority(tmp_path, "other.example")
    with pytest.raises(FleetError, match="the authority of another fleet"):
        members.renew_server(fleet, tmp_path)
    shutil.copy(fleet.path / "authority" / "ca.crt", tmp_path / "ca.crt")
    with pytest.raises(FleetError, match="is not the key of"):
        members.renew_server(fleet, tmp_path)
    (tmp_path / "ca.key").write_text("no key")
    with pytest.raises(FleetError, match="does not hold the authority"):
        members.renew_server(fleet, tmp_path)
    assert files(fleet.server) == before


def test_a_certificate_that_ends_soon_is_told(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    _tell_of_end(fleet, said.append)
    assert said == []
    soon = datetime.timedelta(days=365 * keys.YEARS + 1)
    monkeypatch.setattr("fedkit.cli.fleet_server._SOON", soon)
    _tell_of_end(fleet, said.append)
    assert len(said) == 2 and f"fedkit fleet renew {fleet.path}" in said[0]


@pytest.mark.parametrize(
    "line", ["revoked = [2]", "revoked = [-1]", 'revoked = ["a"]', "names = [1]", "revoked = 1",
             'names = ["a", "a"]', 'names = ["a/b"]', 'names = ["a", "b", "c"]']
)  # fmt: skip
def test_a_damaged_fleet_file_is_named(fleet: Fleet, line: str) -> None:
    file = fleet.path / "fleet.toml"
    values = {**tomllib.loads(file.read_text()), **tomllib.loads(line)}
    file.write_text(tomli_w.dumps(values))
    with pytest.raises((FleetError, ConfigError)):
        open_fleet(fleet.path)


@pytest.mark.parametrize("text", ["", "[", "{}", '["x"]', "[1.5", "[[1]]", "null"])
def test_damaged_files_of_the_server_are_named_or_left_out(fleet: Fleet, text: str) -> None:
    (fleet.server / "leaving.json").write_text(text)
    (fleet.server / NAMES).write_text(text)
    if text != "{}":
        with pytest.raises(FleetError, match="does not say which keys are revoked"):
            members.read_leaving(fleet)
    assert read_names(fleet.server / NAMES) == {}


def test_names_are_read_as_one_line(fleet: Fleet) -> None:
    write_names(fleet.server / NAMES, {0: "a\x1b[2J\nb", 1: "x" * 1000})
    found = read_names(fleet.server / NAMES)
    assert found[0].isprintable() and len(found[1]) == 100


# A real fleet

RUN: dict[str, Any] = {
    "devices": 2,
    "partition": "iid",
    "examples_per_device": 24,
    "test_examples": 60,
    "rounds": 2,
    "epochs": 1,
    "batch_size": 12,
    "server_epochs": 1,
    "sparse_epochs": 1,
    "method": "erk",
    "deadline": 600,
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFleet]:
    folder, init = tmp_path_factory.mktemp("members"), ("--with-data", "--names", "kitchen,hall")
    with RealFleet(folder, RUN, init=init) as made:
        made.start_server()
        yield made


def online(real: RealFleet) -> set[str]:
    _, out, _ = command("fleet", "status", real.fleet.path, "--json")
    return {d["name"] for d in json.loads(out)["devices"] if d["connection"] == "online"}


def answered(real: RealFleet, run: str) -> set[int]:
    return {event["device"] for event in real.events(run) if event["event"] == "answer"}


def finish(real: RealFleet, name: str) -> None:
    ended = real.run("--name", name)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.slow
def test_the_life_of_a_fleet(real: RealFleet, tmp_path: Path) -> None:
    """One fleet and one server throughout, as an operator has it; in the order of the words."""
    # A device that is not there is named while it is waited for.
    real.start_device(0)
    run = real.start_run("--name", "first")
    said: list[str] = []
    assert run.stdout is not None
    for line in run.stdout:
        said.append(line)
        if "1 of 2 devices are there; waiting up to" in line and "device hall" in line:
            break
    else:
        raise AssertionError("".join(said) + real.last())
    real.start_device(1)
    rest = threading.Thread(target=run.stdout.read)
    rest.start()
    # Its accuracy is told while it runs.
    status: dict[str, Any] = {}

    def measured() -> bool:
        _, out, _ = command("fleet", "status", real.fleet.path, "--json")
        status.update(json.loads(out))
        return status["run"] == "first" and status["round"] >= 1

    wait_for(measured)
    assert 0 < status["accuracy"] <= 1
    assert [device["name"] for device in status["devices"]] == ["kitchen", "hall"]
    assert run.wait(HANG) == 0
    rest.join()
    run.stdout.close()

    # Another run on the same fleet, right after, ends with the same bits.
    finish(real, "second")
    assert_same_bits(real.state("second"), real.state("first"))

    # A device that is added takes part.
    said_of_it = real.changed("add", "--name", "attic")
    assert "the server knows of it" in said_of_it
    shutil.copy(real.fleet.device(0) / "data.npz", real.fleet.device(2))
    real.start_device(2)
    finish(real, "third")
    assert answered(real, "third") == {0, 1, 2}

    # One that is revoked does not, is not waited for, and cannot come back.
    assert "hall is revoked" in real.changed("revoke", "hall")
    wait_for(lambda: online(real) == {"kitchen", "attic"})
    finish(real, "fourth")
    assert answered(real, "fourth") == {0, 2}
    assert "waiting" not in {event["event"] for event in real.events("fourth")}
    real.kill("device-1")
    real.start_device(1)
    wait_for(lambda: real.said(GHOST))
    real.kill("device-1")

    # A new key: who has the old one is cut off.
    old = tmp_path / "old"
    shutil.copytree(real.fleet.device(2), old, ignore=shutil.ignore_patterns("flwr", "state"))
    real.changed("renew", "--device", "attic")
    real.kill("device-2")
    shutil.copy(real.fleet.device(2) / "device.key", tmp_path / "new.key")
    shutil.copy(old / "device.key", real.fleet.device(2) / "device.key")
    told = real.times_said(GHOST)
    real.start_device(2)
    wait_for(lambda: real.times_said(GHOST) > told)
    real.kill("device-2")
    shutil.copy(tmp_path / "new.key", real.fleet.device(2) / "device.key")
    real.start_device(2)

    # A new certificate, and the server started again with it: devices come back by themselves.
    real.changed("renew")
    real.kill("server")
    real.start_server()
    wait_for(lambda: online(real) == {"kitchen", "attic"})
    finish(real, "fifth")
    assert answered(real, "fifth") == {0, 2}
    assert_same_bits(real.state("fifth"), real.state("fourth"))
