"""Who belongs to a fleet, after it was made: devices come, go, and get new keys.

All of it changes folders alone. `fedkit.fleet.commands.register_devices` tells the server, at once
where it runs, or when it starts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

import tomli_w

from fedkit.config import read_config
from fedkit.core.errors import FleetError
from fedkit.core.files import write_atomic
from fedkit.fleet import keys
from fedkit.fleet.folder import (
    PLAN,
    Fleet,
    check_names,
    read_nodes,
    write_device,
    write_fleet_file,
)
from fedkit.fleet.private import private_files
from fedkit.flower.nodes import NODES, write_nodes

_LEAVING = "leaving.json"
"""File of the server's folder: nodes whose keys it must let go."""


def add_device(fleet: Fleet, name: str = "") -> Fleet:
    """Make a further device: its folder with a key, and a place in the fleet's files.

    Args:
        fleet: The fleet.
        name: What people call it; "" for its number.

    Returns:
        The fleet with it; it is the last one.

    Raises:
        ConfigError: It cannot be called so.
        FleetError: Another device has that name, or its folder exists.
    """
    index = fleet.devices
    names = [fleet.names[n] if n < len(fleet.names) else "" for n in range(index)]
    grown = replace(fleet, devices=index + 1, names=[*names, name] if any([*names, name]) else [])
    check_names(grown)
    folder = grown.device(index)
    if folder.exists():
        raise FleetError(f"{folder} exists and is never overwritten; move it, or give a name")
    making = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(making, ignore_errors=True)
    with private_files():
        making.mkdir(parents=True)
        write_device(grown, index, making, fleet.config)
        for file in (PLAN, "ca.crt"):
            if (fleet.server / file).is_file():
                shutil.copyfile(fleet.server / file, making / file)
        if fleet.secure:
            keys.write_device_key(making)
        making.rename(folder)
        given = {**read_config(fleet.path / "run.toml"), "devices": grown.devices}
        write_atomic(fleet.path / "run.toml", tomli_w.dumps(given).encode())
        write_fleet_file(grown)
    return grown


def revoke_device(fleet: Fleet, index: int) -> Fleet:
    """Let a device in no more; its number stays its own, and its folder is left as it is.

    Raises:
        FleetError: The fleet has no keys, or no other device.
    """
    _need_keys(fleet)
    if fleet.members == [index]:
        raise FleetError(f"{fleet.name(index)} is the last device of {fleet.path}; add one before")
    _let_go(fleet, index)
    left = replace(fleet, revoked=sorted({*fleet.revoked, index}))
    with private_files():
        write_fleet_file(left)
    return left


def renew_device(fleet: Fleet, index: int) -> Path:
    """Give a device another key; return its folder, whose keys must go to the device.

    Raises:
        FleetError: The fleet has no keys.
    """
    _need_keys(fleet)
    folder = fleet.device(index)
    new = folder / ".renewed"
    shutil.rmtree(new, ignore_errors=True)
    with private_files():
        new.mkdir(parents=True)
        keys.write_device_key(new)
        _let_go(fleet, index)
        for file in ("device.key.pub", "device.key"):
            (new / file).replace(folder / file)
        new.rmdir()
    return folder


def renew_server(fleet: Fleet, authority: Path) -> None:
    """Make the server's key and certificate anew; devices notice nothing.

    Args:
        fleet: The fleet.
        authority: Folder of its authority, which signs.

    Raises:
        FleetError: The fleet has no keys, or that is not its authority.
    """
    _need_keys(fleet)
    signed = keys.read_authority(authority)
    if (authority / "ca.crt").read_bytes() != (fleet.server / "ca.crt").read_bytes():
        raise FleetError(f"{authority} is the authority of another fleet; devices trust it not")
    new = fleet.server / ".renewed"
    shutil.rmtree(new, ignore_errors=True)
    with private_files():
        new.mkdir()
        keys.write_server(new, [fleet.host, *keys.LOOPBACK], signed)
        for file in ("server.crt", "server.key"):
            (new / file).replace(fleet.server / file)
        new.rmdir()


def read_leaving(fleet: Fleet) -> set[int]:
    """Return the nodes whose keys the server must let go.

    Raises:
        FleetError: The file was changed to something else.
    """
    path = fleet.server / _LEAVING
    try:
        return {int(node) for node in json.loads(path.read_text(encoding="utf-8"))}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise FleetError(
            f"{path} does not say which keys are revoked ({error}); write the node ids of "
            "`flwr supernode list` there that must go, as a JSON list"
        ) from error


def write_leaving(fleet: Fleet, nodes: Set[int]) -> None:
    """Write which nodes' keys the server must let go."""
    write_atomic(fleet.server / _LEAVING, json.dumps(sorted(nodes)).encode(), 0o600)


def _let_go(fleet: Fleet, index: int) -> None:
    """Note that the server must let a device's key go, before it is forgotten."""
    known = read_nodes(fleet)
    going = {node for node, device in known.items() if device == index}
    write_leaving(fleet, read_leaving(fleet) | going)
    if going:
        write_nodes(fleet.server / NODES, {n: d for n, d in known.items() if n not in going})


def _need_keys(fleet: Fleet) -> None:
    if not fleet.secure:
        raise FleetError(
            f"{fleet.path} was made with --insecure and has no keys, so that every device is let "
            "in; make it anew without"
        )
