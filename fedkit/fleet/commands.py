"""The Flower command lines that run a fleet; each is printed before it runs."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedkit.core.errors import FleetError
from fedkit.fleet.address import listens_on
from fedkit.fleet.folder import DeviceFile, Fleet, read_nodes
from fedkit.fleet.members import read_leaving, write_leaving
from fedkit.flower.nodes import NAMES, NODES, write_names, write_nodes
from fedkit.flower.processes import ENVIRONMENT, Value, free_port, past_proxies, toml_pairs

CONNECTION = "fleet"
"""Name of the server in Flower's settings."""


def server_command(fleet: Fleet) -> list[str]:
    """Return what starts the SuperLink.

    `fedkit.flower.superlink` is Flower's `flower-superlink`, but that it takes orders from the
    account alone that it runs as: Flower has them on the port of the devices, where anybody who
    reaches it could start code of their own.
    """
    command = [
        *_module("fedkit.flower.superlink"),
        "--host", listens_on(fleet.host), "--port", str(fleet.port),
        "--isolation", "subprocess", "--disable-runtime-dependency-installation",
        "--database", str(fleet.server / "flower.db"),
    ]  # fmt: skip
    if not fleet.secure:
        return [*command, "--insecure"]
    return [
        *command, "--enable-supernode-auth",
        "--ssl-ca-certfile", str(fleet.server / "ca.crt"),
        "--ssl-certfile", str(fleet.server / "server.crt"),
        "--ssl-keyfile", str(fleet.server / "server.key"),
    ]  # fmt: skip


def device_command(folder: Path, device: DeviceFile) -> list[str]:
    """Return what starts a device's SuperNode; it runs in the device's folder.

    `fedkit.flower.supernode` is Flower's `flower-supernode`, but that it runs one app alone, and
    answers nobody but the account that it runs as.
    """
    node: dict[str, Value] = {"device": device.device, "data": device.data, "state": "state"}
    if device.plan:
        node["plan"] = device.plan
    if device.task:
        node["task"] = device.task
    if device.trainer:
        node |= {
            "trainer": device.trainer,
            "microcontroller": device.microcontroller,
            "baud": device.baud,
        }
    command = [
        *_module("fedkit.flower.supernode"),
        *(["--fedkit-app", device.app] if device.app else []), "--superlink", device.superlink,
        "--isolation", "subprocess", "--host", "127.0.0.1",
        "--port", str(device.port or free_port()), "--node-config", toml_pairs(node),
    ]  # fmt: skip
    if not device.secure:
        return [*command, "--insecure"]
    missing = [name for name in ("ca.crt", "device.key") if not (folder / name).is_file()]
    if missing:
        raise FleetError(
            f"{folder} lacks {' and '.join(missing)}; copy the whole folder that "
            "fedkit fleet init made for this device"
        )
    return [
        *command, "--root-certificates", "ca.crt", "--auth-supernode-private-key", "device.key",
    ]  # fmt: skip


def run_command(fleet: Fleet, values: Mapping[str, Value]) -> list[str]:
    """Return what starts a run and follows it."""
    return [
        _program("flwr"), "run", str(fleet.server / "app"), CONNECTION, "--stream",
        "--run-config", toml_pairs(values),
    ]  # fmt: skip


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a Flower program whose files are in `home`."""
    here = Path(sys.executable).parent
    paths = f"{here}{os.pathsep}{os.environ.get('PATH', '')}"
    own = {"FLWR_HOME": str(home), "PATH": paths, **past_proxies(os.environ)}
    return {**os.environ, **ENVIRONMENT, **own}


def shown(command: list[str]) -> str:
    """Return a command as a person would type it."""
    return shlex.join(command)


def flwr_json(fleet: Fleet, *arguments: str) -> dict[str, Any]:
    """Return what a command of Flower's says about the running server.

    Raises:
        FleetError: It failed; its own words are in the message.
    """
    command = [_program("flwr"), *arguments, CONNECTION, "--format", "json"]
    home = environment(fleet.server / "flwr")
    ended = subprocess.run(command, env=home, capture_output=True, text=True)
    start = ended.stdout.find("{")
    try:
        said: dict[str, Any] = json.JSONDecoder().raw_decode(ended.stdout[max(start, 0) :])[0]
    except ValueError:
        said = {"success": False, "error-message": (ended.stdout + ended.stderr).strip()}
    if not said.get("success"):
        raise FleetError(f"{shown(command)} failed: {said.get('error-message', said)}")
    return said


def register_devices(fleet: Fleet) -> dict[int, int]:
    """Have the running server know the devices' keys and no others; return device by node id.

    What was registered is kept in server/nodes.json, whole after each key.

    Raises:
        FleetError: The server does not take a key, or does not let one go.
    """
    for node in (leaving := read_leaving(fleet)):
        with contextlib.suppress(FleetError):  # it is gone already, or is still there below
            flwr_json(fleet, "supernode", "unregister", str(node))
    if leaving and (still := leaving & _registered(fleet)):
        raise FleetError(f"the server does not let {len(still)} revoked keys go; start it again")
    write_leaving(fleet, set())
    known = read_nodes(fleet)
    for index in sorted(set(fleet.members) - set(known.values())):
        key = fleet.device(index) / "device.key.pub"
        said = flwr_json(fleet, "supernode", "register", str(key))
        known[int(said["node-id"])] = index
        write_nodes(fleet.server / NODES, known)
    write_names(fleet.server / NAMES, {index: fleet.name(index) for index in fleet.members})
    return known


def _registered(fleet: Fleet) -> set[int]:
    """Return the nodes whose keys the server knows; it lists those too that it let go."""
    nodes = flwr_json(fleet, "supernode", "list")["nodes"]
    return {int(each["node-id"]) for each in nodes if each["status"] != "unregistered"}


def _module(name: str) -> list[str]:
    """Return what runs a module of ours, wherever it is started: no file there takes its place."""
    return [sys.executable, "-P", "-m", name]


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
