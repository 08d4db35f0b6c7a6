"""`fedkit fleet`: real devices. Every command of Flower's that runs is printed first."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedkit.cli import flags
from fedkit.cli.terminal import Terminal

if TYPE_CHECKING:
    from fedkit.fleet.folder import Fleet

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Run a fleet of real devices."
)
log = Terminal(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="print one JSON object as the last line")]
FleetPath = Annotated[Path, typer.Argument(help="folder of the fleet, from `fedkit fleet init`")]

DeviceName = Annotated[
    str, typer.Argument(metavar="DEVICE", help="name or number, as `fedkit fleet status` shows it")
]

DEFAULTS = {"min_share": 0.5, "deadline": 600.0}
"""What a real fleet's runs begin with, where a simulation waits for everybody."""


@app.command("init", cls=flags.ConfigCommand)
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
    names: Annotated[
        str, typer.Option(help="of the devices, with commas between (default: device-000 ...)")
    ] = "",
    as_json: Json = False,
) -> None:
    """Make a fleet: keys, certificates, a server's folder, and a folder to copy to each device.

    Example: `fedkit fleet init myfleet --devices 4 --address 192.168.1.10:8000 --task digits`
    """
    from fedkit.cli import fleet_devices, fleet_server
    from fedkit.config import make_config
    from fedkit.core.errors import FleetError
    from fedkit.fleet.address import parse_address
    from fedkit.fleet.folder import make_fleet

    parse_address(address)  # before data is loaded
    config = make_config({**DEFAULTS, **values})
    devices = fleet_devices.prepare(config, with_data)

    def fill(fleet: Fleet) -> None:
        fleet_devices.write(fleet, devices)

    try:
        called = [name.strip() for name in names.split(",")] if names else []
        fleet = make_fleet(path, address, config, fleet_devices.APP, insecure, fill, called)
    except OSError as error:
        raise FleetError(
            f"{path} cannot be made: {error.strerror}; give a folder that this account can write"
        ) from error
    fleet_server.warn_root(_say)
    _say(f"fleet of {fleet.devices} devices in {fleet.path}")
    for line in _NEXT.format(path=shlex.quote(str(path))).splitlines():
        _say(line)
    if as_json:
        _write({"fleet": str(fleet.path), "devices": fleet.devices, "address": address})


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
    from fedkit.cli import fleet_server
    from fedkit.fleet.folder import open_fleet

    fleet_server.serve(open_fleet(path), _say)


@app.command()
def device(
    path: Annotated[Path, typer.Argument(help="the device's folder, as it was copied here")],
) -> None:
    """Start this device's SuperNode; Ctrl-C stops it.

    Example: `fedkit fleet device /opt/fedkit/device-000`
    """
    from fedkit.cli import fleet_server
    from fedkit.core import supervise
    from fedkit.fleet import commands
    from fedkit.fleet.folder import open_device
    from fedkit.fleet.private import OTHERS, make_private

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
    supervise.stay_guarded_over_exec()
    os.execve(command[0], command, environment)


@app.command(cls=flags.ConfigCommand)
@flags.from_config
def run(
    values: dict[str, Any],
    path: FleetPath,
    name: Annotated[str, typer.Option(help="name of the run (default: its time)")] = "",
    resume: Annotated[
        str, typer.Option(help="name of a run that ended early, to go on with; last: the last one")
    ] = "",
    as_json: Json = False,
) -> None:
    """Run the fleet, or go on with a run that ended early.

    Example: `fedkit fleet run myfleet --rounds 50`
    """
    from fedkit.cli import fleet_run, summary
    from fedkit.fleet.folder import open_fleet

    folder = fleet_run.run_fleet(open_fleet(path), values, name, resume, _say)
    if as_json:
        _write(summary.show(folder))


@app.command()
def status(path: FleetPath, as_json: Json = False) -> None:
    """Show devices and the last run: rounds, when last seen, what was refused, bytes, memory.

    Example: `fedkit fleet status myfleet`
    """
    from fedkit.cli import fleet_status
    from fedkit.fleet.folder import open_fleet

    found = fleet_status.status_of(open_fleet(path))
    if as_json:
        _write(found)
    else:
        Terminal().print(fleet_status.status_table(found))


@app.command()
def add(
    path: FleetPath,
    name: Annotated[str, typer.Option(help="what to call it (default: its number)")] = "",
    as_json: Json = False,
) -> None:
    """Make the folder and key of a further device; a server that runs lets it in at once.

    Example: `fedkit fleet add myfleet --name kitchen`
    """
    from fedkit.cli import fleet_members
    from fedkit.fleet.folder import open_fleet

    found = fleet_members.add(open_fleet(path), name, _say)
    if as_json:
        _write(found)


@app.command()
def revoke(path: FleetPath, device: DeviceName, as_json: Json = False) -> None:
    """Let a device in no more, at once where the server runs; runs go on without it.

    Example: `fedkit fleet revoke myfleet device-001`
    """
    from fedkit.cli import fleet_members
    from fedkit.fleet.folder import open_fleet

    found = fleet_members.revoke(open_fleet(path), device, _say)
    if as_json:
        _write(found)


@app.command()
def renew(
    path: FleetPath,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="give it another key (default: the server's)")
    ] = "",
    authority: Annotated[
        Path | None,
        typer.Option(help="folder of the authority's key, from its safe place"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the server's certificate anew, signed by the fleet's authority; or a device's key.

    Example: `fedkit fleet renew myfleet --authority /somewhere/safe`
    """
    from fedkit.cli import fleet_members
    from fedkit.fleet.folder import open_fleet

    found = fleet_members.renew(open_fleet(path), device, authority, _say)
    if as_json:
        _write(found)


@app.command()
def watch(
    path: FleetPath,
    run: Annotated[str, typer.Option(help="name of a run (default: the newest)")] = "",
    address: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="where the page is (default: a free port of 127.0.0.1); what other machines "
            "reach needs the token in the address that is printed",
        ),
    ] = "",
) -> None:
    """Show the report of a run in a browser while the fleet writes it; Ctrl-C ends it.

    Example: `fedkit fleet watch myfleet`
    """
    from fedkit.cli import watch
    from fedkit.fleet.folder import open_fleet

    watch.fleet(open_fleet(path), run, address, _say)


def _write(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")


def _say(text: str) -> None:
    log.print(text, highlight=False, soft_wrap=True)
