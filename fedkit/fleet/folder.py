"""The folder of a fleet: what `fedkit fleet init` makes, and where everything lies in it.

fleet.toml       where the server listens, how many devices there are
run.toml         configuration of its runs; flags of `fedkit fleet run` override it
authority/       the key that signed the server's certificate: keep it elsewhere
server/          certificate, Flower's state and settings, the Flower app
devices/NAME/    one folder per device, to be copied to it
runs/NAME/       run folders
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import tomllib
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from fedkit.config import RunConfig, make_config, read_config
from fedkit.errors import ConfigError, FleetError
from fedkit.files import write_whole
from fedkit.fleet import keys, units

DEVICE_FILE = "device.toml"
_FILE = "fleet.toml"


@dataclass(frozen=True)
class Fleet:
    """A fleet as its folder says.

    Attributes:
        path: The folder, absolute.
        host: Name or address that devices reach the server by.
        port: Its TCP port.
        devices: How many there are.
        secure: Whether it has TLS and keys of devices; without, the host is this machine.
    """

    path: Path
    host: str
    port: int
    devices: int
    secure: bool = True

    @property
    def server(self) -> Path:
        """Folder of the server's own things."""
        return self.path / "server"

    @property
    def runs(self) -> Path:
        """Folder of run folders."""
        return self.path / "runs"

    @property
    def config(self) -> RunConfig:
        """Configuration of runs, as it was when the fleet was made."""
        return make_config(read_config(self.path / "run.toml"))

    def device(self, index: int) -> Path:
        """Folder of a device."""
        return self.path / "devices" / f"device-{index:03d}"


@dataclass(frozen=True)
class DeviceFile:
    """What `device.toml` in a device's folder says; relative paths start there.

    Attributes:
        superlink: Where the server is, as host:port.
        device: Index of the device.
        data: An .npz of its examples, or `module:function` (`fedkit.device_data`).
        plan: Plan of the model, for the sparse engine; "" computes with torch.
        secure: Whether `ca.crt` and `device.key` lie beside it.
        port: TCP port on this device's loopback for Flower's own use; 0 takes a free one.
    """

    superlink: str
    device: int
    data: str = "data.npz"
    plan: str = "model.plan"
    secure: bool = True
    port: int = 0


def parse_address(address: str) -> tuple[str, int]:
    """Split host:port, where an IPv6 address stands in brackets.

    Raises:
        ConfigError: It is no such text.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"address is {address!r}; it must be host:port as devices reach the server, like "
            "fleet.example:8000 or 192.168.1.10:8000"
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's loopback interface by its name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_fleet(path: Path, address: str, config: RunConfig, app: Path, insecure: bool) -> Fleet:
    """Make the folder of a new fleet, with all keys.

    It is made under another name and renamed when it is complete.

    Args:
        path: The folder; nothing may be there.
        address: Where devices reach the server, host:port.
        config: Of its runs; it says how many devices there are.
        app: The Flower app that its server runs.
        insecure: Without TLS and keys, for a server on this machine's loopback.

    Raises:
        ConfigError: The address is none, or insecure is asked for on a network.
        FleetError: Something is at `path`.
    """
    host, port = parse_address(address)
    if insecure and not is_loopback(host):
        raise ConfigError(
            f"--insecure with address {host!r} would let anybody on that network read and send "
            "what devices do; it is for 127.0.0.1 only: leave it out"
        )
    if path.exists():
        raise FleetError(f"{path} exists and is never overwritten; give another folder")
    final, unnamed = path.absolute(), path.with_name(f".{path.name}.{os.getpid()}.tmp").absolute()
    fleet = Fleet(unnamed, host, port, config.devices, not insecure)
    for folder in (fleet.server, fleet.runs, *map(fleet.device, range(fleet.devices))):
        folder.mkdir(parents=True)
    _write_toml(unnamed / _FILE, {k: v for k, v in asdict(fleet).items() if k != "path"})
    _write_toml(unnamed / "run.toml", config.model_dump())
    shutil.copytree(app, fleet.server / "app", ignore=shutil.ignore_patterns("__pycache__"))
    if fleet.secure:
        _write_keys(fleet)
    _write_settings(fleet, final)
    for index in range(fleet.devices):
        folder = fleet.device(index)
        plan = "" if config.engine == "torch" else DeviceFile.plan
        about = DeviceFile(address, index, plan=plan, secure=fleet.secure)
        _write_toml(folder / DEVICE_FILE, asdict(about))
        units.write_device_unit(folder, folder.name)
        write_whole(folder / "requirements.txt", _requirements().encode())
    units.write_server_unit(fleet.server, final)
    unnamed.rename(final)
    return open_fleet(final)


def open_fleet(path: Path) -> Fleet:
    """Read the folder of a fleet.

    Raises:
        FleetError: There is none, or its file was changed to something else.
    """
    values = _read_toml(path / _FILE, "make a fleet with: fedkit fleet init")
    try:
        return Fleet(path.absolute(), **values)
    except TypeError as error:
        raise FleetError(f"{path / _FILE} is not what fedkit fleet init wrote: {error}") from error


def open_device(path: Path) -> DeviceFile:
    """Read a device's folder.

    Raises:
        FleetError: It is none, or its file holds other keys or values.
    """
    values = _read_toml(path / DEVICE_FILE, "give a device's folder, one of devices/ in a fleet's")
    try:
        found = DeviceFile(**values)
    except TypeError as error:
        raise FleetError(
            f"{path / DEVICE_FILE} holds {sorted(values)}; it needs superlink and device, and may "
            f"have {', '.join(list(asdict(DeviceFile('', 0)))[2:])}"
        ) from error
    wrong = [
        key
        for key, value in asdict(DeviceFile("", 0)).items()
        if type(getattr(found, key)) is not type(value)
    ]
    if wrong:
        raise FleetError(
            f"{path / DEVICE_FILE}: {wrong[0]} is {values[wrong[0]]!r}; it must be like "
            f"{getattr(DeviceFile('host:8000', 0), wrong[0])!r}"
        )
    parse_address(found.superlink)
    return found


def _write_keys(fleet: Fleet) -> None:
    authority = fleet.path / "authority"
    authority.mkdir(mode=0o700)
    signed = keys.write_authority(authority, fleet.host)
    keys.write_server(fleet.server, [fleet.host, "localhost", "127.0.0.1", "::1"], signed)
    for folder in (fleet.server, *map(fleet.device, range(fleet.devices))):
        shutil.copy(authority / "ca.crt", folder / "ca.crt")
    for index in range(fleet.devices):
        keys.write_device_key(fleet.device(index))


def _write_settings(fleet: Fleet, final: Path) -> None:
    """Write Flower's own settings: how its commands on this machine reach the server."""
    home = fleet.server / "flwr"
    home.mkdir(mode=0o700)
    connection: dict[str, Any] = {"address": f"127.0.0.1:{fleet.port}"}
    if fleet.secure:
        connection["root-certificates"] = str(final / "server" / "ca.crt")
    else:
        connection["insecure"] = True
    _write_toml(home / "config.toml", {"superlink": {"default": "fleet", "fleet": connection}})


_ON_A_DEVICE = (
    "flwr",
    "numpy",
    "prometheus-client",
    "pydantic",
    "rich",
    "safetensors",
    "tomli-w",
    "typer",
)
"""What fedkit imports on a device that trains from a plan; their own requirements come along."""


def _requirements() -> str:
    """Return what a device installs, in the versions of this machine: both sides must agree."""
    return "".join(f"{name}=={version(name)}\n" for name in _ON_A_DEVICE)


def _write_toml(path: Path, values: dict[str, Any]) -> None:
    write_whole(path, tomli_w.dumps(values).encode())


def _read_toml(path: Path, advice: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FleetError(f"{path} cannot be read ({error.strerror}); {advice}") from error
    except ValueError as error:
        raise FleetError(f"{path} is no valid TOML: {error}") from error
