"""What `fedkit fleet init` makes, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedkit.config import make_config
from fedkit.core.errors import ConfigError, FedkitError, FleetError
from fedkit.fleet.commands import device_command, server_command
from fedkit.fleet.folder import Fleet, make_fleet, open_device, open_fleet, parse_address
from sim.simulation import APP

CONFIG = make_config({"devices": 2})


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return make_fleet(tmp_path / "fleet", "fleet.example:8443", CONFIG, APP, insecure=False)


def test_the_servers_certificate_is_the_authoritys_and_for_its_address(fleet: Fleet) -> None:
    authority = x509.load_pem_x509_certificate((fleet.path / "authority/ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((fleet.server / "server.crt").read_bytes())
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "fleet.example" in names.get_values_for_type(x509.DNSName)
    limits = server.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not limits.ca
    assert isinstance(server.public_key(), ec.EllipticCurvePublicKey)


def test_every_device_has_a_key_of_its_own_and_all_it_needs(fleet: Fleet) -> None:
    keys = {(fleet.device(index) / "device.key").read_bytes() for index in range(2)}
    assert len(keys) == 2
    for index in range(2):
        folder = fleet.device(index)
        about = open_device(folder)
        assert (about.device, about.superlink) == (index, "fleet.example:8443")
        command = device_command(folder, about)
        assert "--insecure" not in command and "--auth-supernode-private-key" in command
        unit = (folder / "fedkit-device.service").read_text()
        assert f"fleet device /opt/fedkit/{folder.name}" in unit and "MemoryMax=" in unit
        assert "torch" not in (folder / "requirements.txt").read_text()
    assert "--enable-supernode-auth" in server_command(fleet)


def test_nothing_but_its_own_lies_in_the_devices_folder(fleet: Fleet) -> None:
    names = {path.name for path in fleet.device(0).iterdir()}
    assert names == {
        "ca.crt", "device.key", "device.key.pub", "device.toml", "fedkit-device.service",
        "requirements.txt",
    }  # fmt: skip


def test_a_fleet_is_never_overwritten_and_none_is_left_half_made(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FleetError, match="exists and is never overwritten"):
        make_fleet(fleet.path, "fleet.example:8443", CONFIG, APP, insecure=False)

    def full(*given: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("fedkit.fleet.keys.write_device_key", full)
    with pytest.raises(OSError):
        make_fleet(tmp_path / "other", "fleet.example:8443", CONFIG, APP, insecure=False)
    assert not (tmp_path / "other").exists()


def test_without_tls_only_this_machine_is_served(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="let anybody on that network read and send"):
        make_fleet(tmp_path / "fleet", "192.168.1.10:8000", CONFIG, APP, insecure=True)
    made = make_fleet(tmp_path / "fleet", "127.0.0.1:8000", CONFIG, APP, insecure=True)
    assert "--insecure" in server_command(made) and "127.0.0.1" in server_command(made)
    assert not (made.path / "authority").exists()


NO_ADDRESSES = ["", "host", "host:", ":8000", "host:0", "host:70000", "host:x"]


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_an_address_without_host_or_port_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="must be host:port"):
        parse_address(address)


def test_addresses_are_split() -> None:
    assert parse_address("a.example:80") == ("a.example", 80)
    assert parse_address("[::1]:8000") == ("::1", 8000)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "0"}, "device is '0'; it must be like 0"),
        ({"superlink": 3}, "superlink is 3"),
        ({"secure": 1}, "secure is 1"),
        ({"superlink": "nowhere"}, "must be host:port"),
        ({"dta": "x.npz"}, "it needs superlink and device, and may have data"),
    ],
    ids=str,
)
def test_a_wrong_device_file_is_named(fleet: Fleet, change: dict[str, Any], words: str) -> None:
    path = fleet.device(0) / "device.toml"
    path.write_text(tomli_w.dumps({"superlink": "host:8000", "device": 0, **change}))
    with pytest.raises(FedkitError, match=words):
        open_device(path.parent)


def test_a_folder_that_is_no_fleet_and_one_without_keys_are_named(
    fleet: Fleet, tmp_path: Path
) -> None:
    with pytest.raises(FleetError, match="make a fleet with: fedkit fleet init"):
        open_fleet(tmp_path)
    (fleet.device(0) / "device.key").unlink()
    with pytest.raises(FleetError, match=r"lacks device.key; copy the whole folder"):
        device_command(fleet.device(0), open_device(fleet.device(0)))
