"""`fedkit fleet add`, `revoke` and `renew`: what changes in a fleet that is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedkit.cli.fleet_server import check_owner, is_up
from fedkit.core.errors import FleetError
from fedkit.fleet import commands, keys, members
from fedkit.fleet.folder import Fleet

Say = Callable[[str], None]


def add(fleet: Fleet, name: str, say: Say) -> dict[str, Any]:
    """Make a further device; see `members.add_device`."""
    check_owner(fleet.path)
    grown = members.add_device(fleet, name)
    index = grown.devices - 1
    _tell_server(grown, say)
    say(
        f"copy {grown.device(index)} to the device, put its data there as data.npz, and start it: "
        "fedkit fleet device FOLDER"
    )
    say("it takes part in runs that begin from now on")
    return {"device": index, "name": grown.name(index), "folder": str(grown.device(index))}


def revoke(fleet: Fleet, word: str, say: Say) -> dict[str, Any]:
    """Let a device in no more; see `members.revoke_device`."""
    check_owner(fleet.path)
    index = fleet.find(word)
    left = members.revoke_device(fleet, index)
    _tell_server(left, say)
    say(f"{left.name(index)} is revoked; a run that goes on waits for it until its deadline")
    return {"device": index, "name": left.name(index), "devices": len(left.members)}


def renew(fleet: Fleet, word: str, authority: Path | None, say: Say) -> dict[str, Any]:
    """Make the server's certificate anew, or a device's key; see `members`."""
    check_owner(fleet.path)
    if not word:
        members.renew_server(fleet, authority or fleet.path / "authority")
        ends = keys.expires(fleet.server / "server.crt")
        say(f"the server's certificate is good until {ends:%Y-%m-%d}; devices keep theirs")
        if is_up(fleet):
            say("the server that runs has the old one; start it again when no run goes on")
        return {"ends": ends.isoformat()}
    index = fleet.find(word)
    folder = members.renew_device(fleet, index)
    _tell_server(fleet, say)
    say(f"copy device.key and device.key.pub of {folder} to the device, and start it again")
    return {"device": index, "name": fleet.name(index), "folder": str(folder)}


def _tell_server(fleet: Fleet, say: Say) -> None:
    """Have the server that runs know the keys; one that does not learns them when it starts."""
    if not fleet.secure:
        return
    if not is_up(fleet):
        say(f"the server learns of it when it starts: fedkit fleet server {fleet.path}")
        return
    try:
        commands.register_devices(fleet)
        say("the server knows of it")
    except FleetError as error:
        raise FleetError(
            f"{error}; the fleet's files are changed, and the server learns of it when it starts "
            "again"
        ) from error
