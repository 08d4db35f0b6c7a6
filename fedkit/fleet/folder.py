"""The folder of a fleet: what `fedkit fleet init` makes, and where everything lies in it.

fleet.toml       where the server listens, how many devices there are, their names, who is revoked
run.toml         configuration of its runs; flags of `fedkit fleet run` override it
authority/       the key that signed the server's certificate: keep it elsewhere
server/          certificate, Flower's state and settings, the Flower app
devices/NAME/    one folder per device, to be copied to it
runs/NAME/       run folders

All of it is readable by its owner alone.
"""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from fedkit.config import RunConfig, make_config, read_config
from fedkit.core.errors import ConfigError, FleetError
from fedkit.core.files import write_atomic
from fedkit.core.names import check_name
from fedkit.core.text import short
from fedkit.fleet import keys, units
from fedkit.fleet.address import is_loopback, join_address, reached_here
from fedkit.fleet.address import parse_address as parse_address
from fedkit.fleet.private import private_files
from fedkit.flower import nodes

DEVICE_FILE = "device.toml"
PLAN = "model.plan"
"""File in the folders of the server and of each device: the plan of the model of the fleet."""

_FILE = "fleet.toml"
_MOST_DEVICES = 1_000_000
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Fleet:
    """A fleet as its folder says.

    Attributes:
        path: The folder, absolute.
        host: Name or address that devices reach the server by.
        port: Its TCP port.
        devices: How many there are.
        secure: Whether it has TLS and keys of devices; without, the host is this machine.
        names: Of devices, by index, as far as people gave them; "" is none.
        revoked: Indices of devices that are no longer let in.
    """

    path: Path
    host: str
    port: int
    devices: int
    secure: bool = True
    names: list[str] = field(default_factory=list)
    revoked: list[int] = field(default_factory=list)

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

    def name(self, index: int) -> str:
        """Return what people call a device, and its folder."""
        given = self.names[index] if index < len(self.names) else ""
        return given or f"device-{index:03d}"

    def device(self, index: int) -> Path:
        """Folder of a device."""
        return self.path / "devices" / self.name(index)

    @property
    def members(self) -> list[int]:
        """Devices that are let in."""
        return [index for index in range(self.devices) if index not in self.revoked]

    def find(self, word: str) -> int:
        """Return the device that a person means, by its name or its number.

        Raises:
            FleetError: There is none, or it is revoked.
        """
        by_word = {**{str(n): n for n in self.members}, **{self.name(n): n for n in self.members}}
        if word not in by_word:
            names = ", ".join(map(self.name, self.members[:10]))
            raise FleetError(f"there is no device {short(word)} in {self.path}; there are: {names}")
        return by_word[word]


@dataclass(frozen=True)
class DeviceFile:
    """What `device.toml` in a device's folder says; relative paths start there.

    Attributes:
        superlink: Where the server is, as host:port.
        device: Index of the device.
        data: An .npz of its examples, or `module:function` (`fedkit.device.data`).
        plan: Plan of the model, for the sparse engine; "" computes with torch.
        secure: Whether `ca.crt` and `device.key` lie beside it.
        port: TCP port on this device's loopback for Flower's own use; 0 takes a free one.
        app: SHA-256 of a Flower app that this device runs beside the one of its own fedkit.
        task: Task whose data it holds; it takes part in no run of another one. "" is not asked.
        trainer: Folder of `fedkit export --target c99-train`, if this is the gateway of a
            microcontroller that runs it.
        microcontroller: Where that is: /dev/ttyACM0, or socket://HOST:PORT.
        baud: Of a serial port.
    """

    superlink: str
    device: int
    data: str = "data.npz"
    plan: str = PLAN
    secure: bool = True
    port: int = 0
    app: str = ""
    task: str = ""
    trainer: str = ""
    microcontroller: str = ""
    baud: int = 115200


def make_fleet(
    path: Path,
    address: str,
    config: RunConfig,
    app: Path,
    insecure: bool,
    fill: Callable[[Fleet], None] = lambda fleet: None,
    names: Sequence[str] = (),
) -> Fleet:
    """Make the folder of a new fleet, with all keys, for its owner alone.

    It is made under another name and renamed when it is complete; otherwise nothing stays.

    Args:
        path: The folder; nothing may be there.
        address: Where devices reach the server, host:port.
        config: Of its runs; it says how many devices there are.
        app: The Flower app that its server runs.
        insecure: Without TLS and keys, for a server on this machine's loopback.
        fill: Writes what else belongs into it.
        names: Of its devices, the first ones or all.

    Raises:
        ConfigError: The address is not valid, or insecure is asked for on a network.
        FleetError: Something is at `path`, or it cannot stand in a systemd unit.
        OSError: It cannot be written.
    """
    host, port = parse_address(address)
    if insecure and not is_loopback(host):
        raise ConfigError(
            f"--insecure with address {host!r} would let anybody on that network read and send "
            "what devices do; it is for 127.0.0.1 only: leave it out"
        )
    if path.exists() or path.is_symlink():
        raise FleetError(f"{path} exists and is never overwritten; give another folder")
    final, unnamed = path.absolute(), path.with_name(f".{path.name}.{os.getpid()}.tmp").absolute()
    units.server_unit(final)  # before anything is made
    fleet = Fleet(unnamed, host, port, config.devices, not insecure, list(names))
    check_names(fleet)
    try:
        with private_files():
            _write_fleet(fleet, final, config, app)
            units.write_server_unit(fleet.server, final)
            fill(fleet)
        unnamed.rename(final)
    except BaseException:
        shutil.rmtree(unnamed, ignore_errors=True)
        raise
    return open_fleet(final)


def _write_fleet(fleet: Fleet, final: Path, config: RunConfig, app: Path) -> None:
    for folder in (fleet.server, fleet.runs, *map(fleet.device, range(fleet.devices))):
        folder.mkdir(parents=True)
    write_fleet_file(fleet)
    _write_toml(fleet.path / "run.toml", config.as_dict())
    (fleet.server / "app").mkdir()
    for file in sorted(each for each in app.iterdir() if each.is_file()):
        shutil.copyfile(file, fleet.server / "app" / file.name)
    if fleet.secure:
        _write_keys(fleet)
    _write_settings(fleet, final)
    for index in range(fleet.devices):
        write_device(fleet, index, fleet.device(index), config)


def write_fleet_file(fleet: Fleet) -> None:
    """Write what a fleet is into its folder."""
    _write_toml(fleet.path / _FILE, {k: v for k, v in asdict(fleet).items() if k != "path"})


def write_device(fleet: Fleet, index: int, folder: Path, config: RunConfig) -> None:
    """Write into a device's folder what is neither key nor plan nor data."""
    plan, address = "" if config.engine == "torch" else PLAN, join_address(fleet.host, fleet.port)
    about = DeviceFile(address, index, plan=plan, secure=fleet.secure, task=config.task)
    _write_toml(folder / DEVICE_FILE, asdict(about))
    units.write_device_unit(folder, fleet.name(index))
    write_atomic(folder / "requirements.txt", _requirements().encode())


def check_names(fleet: Fleet) -> None:
    """Refuse names that cannot be, or do not tell devices apart.

    Raises:
        ConfigError: A name is none.
        FleetError: Two devices have one, or there are more than devices.
    """
    for name in filter(None, fleet.names):
        check_name(name, "device")
    names = [fleet.name(index) for index in range(max(fleet.devices, len(fleet.names)))]
    if len(names) > fleet.devices:
        raise FleetError(f"{len(fleet.names)} names are given for {fleet.devices} devices")
    if len({*names, *map(str, range(len(names)))}) < 2 * len(names):
        raise FleetError(
            f"the names {', '.join(map(short, fleet.names))} do not tell devices apart; give each "
            "one of its own, and no number"
        )


def open_fleet(path: Path) -> Fleet:
    """Read the folder of a fleet.

    Raises:
        FleetError: There is none, or its file was changed to something else.
        ConfigError: It names an address by which no server can be reached.
    """
    values = _read_toml(path / _FILE, "make a fleet with: fedkit fleet init")
    example = {
        k: v for k, v in asdict(Fleet(path, "fleet.example", 8000, 1)).items() if k != "path"
    }
    found = Fleet(path.absolute(), **_fields(path / _FILE, values, example, 3))
    parse_address(join_address(found.host, found.port))
    if not 0 < found.devices <= _MOST_DEVICES:
        raise FleetError(
            f"{path / _FILE}: devices is {found.devices}; it must be 1 to {_MOST_DEVICES}"
        )
    if not (found.secure or is_loopback(found.host)):
        raise FleetError(
            f"{path / _FILE}: secure is false, and {found.host} is not a loopback address; make "
            "the fleet anew, with keys"
        )
    if not all(type(n) is int and 0 <= n < found.devices for n in found.revoked):
        raise FleetError(f"{path / _FILE}: revoked is {found.revoked}; it must be device numbers")
    if not all(type(name) is str for name in found.names):
        raise FleetError(f"{path / _FILE}: names is {found.names}; it must be texts")
    check_names(found)
    return found


def open_device(path: Path) -> DeviceFile:
    """Read a device's folder.

    Raises:
        FleetError: It is not a fleet, or its file holds other keys or values.
        ConfigError: It names an address by which no server can be reached.
    """
    file = path / DEVICE_FILE
    values = _read_toml(file, "give a device's folder, one of devices/ in a fleet's")
    found = DeviceFile(**_fields(file, values, asdict(DeviceFile("host:8000", 0)), 2))
    parse_address(found.superlink)
    for key, most in (("device", _MOST_DEVICES - 1), ("port", 65535)):
        if not 0 <= getattr(found, key) <= most:
            raise FleetError(f"{file}: {key} is {getattr(found, key)}; it must be 0 to {most}")
    if found.app and not _SHA256.fullmatch(found.app):
        raise FleetError(
            f"{file}: app is {found.app!r}; it must be the SHA-256 of a .fab in hexadecimal, or "
            "empty: the app of this fedkit runs in any case"
        )
    for key in ("data", "plan", "task", "trainer", "microcontroller"):
        if not getattr(found, key).isprintable():
            raise FleetError(
                f"{file}: {key} is {getattr(found, key)!r}; it must be of printable characters"
            )
    if bool(found.trainer) != bool(found.microcontroller):
        raise FleetError(
            f"{file}: trainer is {found.trainer!r} and microcontroller {found.microcontroller!r}; "
            "a gateway needs both, and any other device neither"
        )
    return found


def read_nodes(fleet: Fleet) -> dict[int, int]:
    """Return which device each node is that was registered; nothing where none was.

    Raises:
        FleetError: The file was changed to something else.
    """
    try:
        return nodes.read_nodes(fleet.server / nodes.NODES, fleet.devices)
    except FileNotFoundError:
        return {}


def _fields(
    file: Path, values: dict[str, Any], example: dict[str, Any], needed: int
) -> dict[str, Any]:
    """Return the values of a file if they are like an example, whose first ones it must have."""
    keys = list(example)
    if not set(keys[:needed]) <= set(values) <= set(keys):
        raise FleetError(
            f"{file} holds {sorted(values)}; it needs {' and '.join(keys[:needed])}, and may have "
            f"{', '.join(keys[needed:])}"
        )
    for key, value in values.items():
        if type(value) is not type(example[key]):
            raise FleetError(f"{file}: {key} is {value!r}; it must be like {example[key]!r}")
    return values


def _write_keys(fleet: Fleet) -> None:
    authority = fleet.path / "authority"
    authority.mkdir(mode=0o700)
    signed = keys.write_authority(authority, fleet.host)
    keys.write_server(fleet.server, [fleet.host, *keys.LOOPBACK], signed)
    for folder in (fleet.server, *map(fleet.device, range(fleet.devices))):
        shutil.copy(authority / "ca.crt", folder / "ca.crt")
    for index in range(fleet.devices):
        keys.write_device_key(fleet.device(index))


def _write_settings(fleet: Fleet, final: Path) -> None:
    """Write Flower's own settings: how its commands on this machine reach the server."""
    home = fleet.server / "flwr"
    home.mkdir(mode=0o700)
    address = join_address(reached_here(fleet.host), fleet.port)
    connection: dict[str, Any] = {"address": address}
    if fleet.secure:
        connection["root-certificates"] = str(final / "server" / "ca.crt")
    else:
        connection["insecure"] = True
    _write_toml(home / "config.toml", {"superlink": {"default": "fleet", "fleet": connection}})


_ON_A_DEVICE = (
    "flwr",
    "numpy",
    "prometheus-client",
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
    write_atomic(path, tomli_w.dumps(values).encode())


def _read_toml(path: Path, advice: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FleetError(f"{path} cannot be read ({error.strerror}); {advice}") from error
    except (ValueError, RecursionError) as error:
        raise FleetError(f"{path} is not valid TOML: {error}") from error
