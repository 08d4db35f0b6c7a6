"""`fedkit fleet`: real devices. Every command of Flower's that runs is printed first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.table import Column, Table

from fedkit.checkpoint import RunFolder
from fedkit.cli import flags, fleet_server
from fedkit.config import RunConfig, make_config
from fedkit.errors import FleetError
from fedkit.events import EVENTS
from fedkit.fleet import commands
from fedkit.fleet.folder import Fleet, make_fleet, open_device, open_fleet
from fedkit.fleet.private import OTHERS, make_private
from fedkit.fleet.processes import Value
from fedkit.fleet.status import FleetStatus
from fedkit.text import terminal_text

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Run a fleet of real devices."
)
log = Console(stderr=True)

FleetPath = Annotated[Path, typer.Argument(help="folder of the fleet, from `fedkit fleet init`")]

DEFAULTS = {"min_share": 0.5, "deadline": 600.0}
"""What a real fleet's runs begin with, where a simulation waits for everybody."""


@app.command("init")
@flags.from_config
def init(
    values: dict[str, Any],
    path: Annotated[Path, typer.Argument(help="the folder to make")],
    address: Annotated[
        str, typer.Option(help="host:port by which devices reach the server")
    ] = "127.0.0.1:8000",
    with_data: Annotated[
        bool, typer.Option("--with-data", help="share the task's data out to the devices' folders")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="no TLS, no keys; for 127.0.0.1 only")
    ] = False,
) -> None:
    """Make a fleet: keys, certificates, a server's folder, and a folder to copy to each device.

    Example: `fedkit fleet init myfleet --devices 4 --address 192.168.1.10:8000 --task digits`
    """
    from fedkit.cli import fleet_devices

    config = make_config({**DEFAULTS, **values})
    devices = fleet_devices.prepare(config, with_data)
    fleet = make_fleet(path, address, config, fleet_devices.APP, insecure)
    fleet_devices.write(fleet, devices)
    log.print(f"fleet of {fleet.devices} devices in {fleet.path}", soft_wrap=True)
    log.print(_NEXT.format(path=path), markup=False, highlight=False, soft_wrap=True)


_NEXT = """next:
  1. keep {path}/authority somewhere safe: who has it can stand in for the server
  2. here:            fedkit fleet server {path}
  3. on each device:  copy its folder from {path}/devices, put its data there as data.npz, then
                      fedkit fleet device FOLDER
  4. here:            fedkit fleet run {path}"""


@app.command()
def server(path: FleetPath) -> None:
    """Start the SuperLink and register the devices' keys; Ctrl-C stops it.

    Example: `fedkit fleet server myfleet`
    """
    signal.signal(signal.SIGTERM, _stop)
    fleet_server.serve(open_fleet(path), _say)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@app.command()
def device(
    path: Annotated[Path, typer.Argument(help="the device's folder, as it was copied here")],
) -> None:
    """Start this device's SuperNode; Ctrl-C stops it.

    Example: `fedkit fleet device /opt/fedkit/device-000`
    """
    about = open_device(path)
    command = commands.device_command(path, about)
    fleet_server.check_owner(path)
    fleet_server.warn_root(_say)
    os.umask(OTHERS)  # also for the program that this process becomes
    home = path.absolute() / "flwr"
    home.mkdir(exist_ok=True)
    make_private(path)
    _say(commands.shown(command))
    sys.stderr.flush()
    environment = commands.environment(home)
    os.chdir(path)
    os.execve(command[0], command, environment)


@app.command()
@flags.from_config
def run(
    values: dict[str, Any],
    path: FleetPath,
    name: Annotated[str, typer.Option(help="name of the run (default: its time)")] = "",
    resume: Annotated[
        str, typer.Option(help="name of a run that ended early, to go on with; last: the last one")
    ] = "",
) -> None:
    """Run the fleet, or go on with a run that ended early.

    Example: `fedkit fleet run myfleet --rounds 50`
    """
    fleet = open_fleet(path)
    if resume:
        folder = _to_resume(fleet, resume)
        config = make_config({**RunFolder.open(folder).config.model_dump(), **values})
    else:
        folder = fleet.runs / (name or time.strftime("%Y%m%d-%H%M%S"))
        config = make_config({**fleet.config.model_dump(), **values})
        RunFolder.check_free(folder)
    given: dict[str, Value] = {**config.model_dump(), "folder": str(folder), "resume": bool(resume)}
    if fleet.secure:
        given["nodes"] = str(fleet.server / "nodes.json")
    command = commands.run_command(fleet, given)
    _say(commands.shown(command))
    ended = subprocess.run(command, env=commands.environment(fleet.server / "flwr"))
    _check_finished(config, folder, ended.returncode)
    log.print(f"done; look at it with: fedkit show {folder}", soft_wrap=True)


def _to_resume(fleet: Fleet, name: str) -> Path:
    runs = sorted(path for path in fleet.runs.iterdir() if (path / "config.toml").is_file())
    if name == "last" and runs:
        return max(runs, key=lambda path: path.stat().st_mtime)
    if fleet.runs / name in runs:
        return fleet.runs / name
    known = ", ".join(path.name for path in runs) or "none"
    raise FleetError(f"there is no run {name!r} in {fleet.runs} to resume; there are: {known}")


def _check_finished(config: RunConfig, folder: Path, code: int) -> None:
    """`flwr run` ends with 0 even if the app failed; the run folder tells."""
    reason = folder / "error.txt"
    if reason.is_file():
        raise FleetError(f"the run failed: {reason.read_text(encoding='utf-8').strip()}")
    metrics = RunFolder(folder).metrics()
    done = metrics[-1]["round"] if metrics else 0
    if done < config.rounds:
        how = f"--resume {folder.name}" if metrics else "again"
        raise FleetError(
            f"the run ended (exit code {code}) after {done} of {config.rounds} rounds; go on with: "
            f"fedkit fleet run FOLDER {how}"
        )


@app.command()
def status(
    path: FleetPath,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show devices and the last run: rounds, who was seen when, what was refused, bytes, memory.

    Example: `fedkit fleet status myfleet`
    """
    fleet = open_fleet(path)
    found = _status(fleet)
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        Console().print(_status_table(found))


def _status(fleet: Fleet) -> dict[str, Any]:
    runs = [path for path in fleet.runs.iterdir() if (path / EVENTS).is_file()]
    last = max(runs, key=lambda path: (path / EVENTS).stat().st_mtime, default=None)
    known = FleetStatus.of(last / EVENTS) if last else FleetStatus()
    connected = _connected(fleet)
    devices = []
    for index in range(fleet.devices):
        about = vars(known.devices[index]) if index in known.devices else {}
        devices.append({"device": index, "connection": connected.get(index, "unknown"), **about})
    return {
        "fleet": str(fleet.path),
        "server": "up" if connected else "down, or no device is registered",
        "run": last.name if last else "",
        **{key: value for key, value in vars(known).items() if key != "devices"},
        "devices": devices,
    }


def _connected(fleet: Fleet) -> dict[int, str]:
    """Return what Flower says of each registered device; nothing where no server answers."""
    path = fleet.server / "nodes.json"
    if not path.is_file():
        return {}
    nodes = json.loads(path.read_text())
    try:
        listed = commands.flwr_json(fleet, "supernode", "list")["nodes"]
    except FleetError:
        return {}
    return {
        nodes[str(each["node-id"])]: each["status"]
        for each in listed
        if str(each["node-id"]) in nodes
    }


def _status_table(found: Mapping[str, Any]) -> Group:
    shown = {key: value for key, value in found.items() if key != "devices"}
    head = Table(show_header=False)
    for key, value in shown.items():
        head.add_row(key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    columns = list(dict.fromkeys(key for each in found["devices"] for key in each))
    body = Table(*(Column(name.replace("_", " "), overflow="fold") for name in columns))
    for each in found["devices"]:
        body.add_row(*(_cell(name, each.get(name, "")) for name in columns))
    return Group(head, body)


def _cell(name: str, value: Any) -> str:
    if name == "seen":
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) if value else "never"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _say(text: str) -> None:
    log.print(terminal_text(text), markup=False, highlight=False, soft_wrap=True)
