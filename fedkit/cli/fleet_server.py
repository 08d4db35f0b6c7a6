"""`fedkit fleet server`: one SuperLink for a fleet, from its start to its end."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedkit.core import supervise
from fedkit.core.errors import FleetError
from fedkit.core.signals import STOPS
from fedkit.fleet import commands, keys
from fedkit.fleet.address import join_address, listens_on, only_by_ipv6, reached_here
from fedkit.fleet.folder import Fleet
from fedkit.fleet.private import make_private, private_files
from fedkit.flower.processes import kill_marked, marked, stop_group

_PATIENCE = 600.0
"""Seconds for a SuperLink that lives to answer; under load it takes many times the usual five."""

Say = Callable[[str], None]


def check_owner(path: Path) -> None:
    """Refuse to give orders for a folder that is another account's.

    Raises:
        FleetError: Says whose it is.
    """
    owner = path.stat().st_uid if path.exists() else os.geteuid()
    if owner != os.geteuid():
        raise FleetError(
            f"{path} belongs to account {owner}, and this is account {os.geteuid()}; orders are "
            f"taken from its owner alone: run this as that account (sudo -u '#{owner}' ...)"
        )


def warn_root(say: Say) -> None:
    """Say what it means to run a fleet's programs as root."""
    if os.geteuid() == 0:
        say(
            "warning: this runs as root, and so does all that it is sent; give it an account of "
            "its own: docs/how-to/set-up-a-board.md"
        )


def serve(fleet: Fleet, say: Say) -> None:
    """Run a fleet's SuperLink until it ends or a signal comes.

    Raises:
        FleetError: It runs already, its port is another's, or it ended by itself.
    """
    check_owner(fleet.path)
    warn_root(say)
    with _alone(fleet), private_files():
        make_private(fleet.path)
        _end_leftovers(fleet, say)
        _check_port(fleet)
        _tell_of_ipv6(fleet, say)
        if fleet.secure:
            _tell_of_end(fleet, say)
        _serve(fleet, say)


def _serve(fleet: Fleet, say: Say) -> None:
    command = commands.server_command(fleet)
    say(commands.shown(command))
    home = commands.environment(fleet.server / "flwr")
    supervise.guard()
    process = subprocess.Popen(command, env=home, start_new_session=True)
    supervise.tell_group(process)
    try:
        _wait_until_up(fleet, process)
        if fleet.secure:
            say(f"registered: {len(commands.register_devices(fleet))} devices")
        say(f"listening on {join_address(fleet.host, fleet.port)}")
        code = process.wait()
    except STOPS:  # the way to end a server
        code = 0
    finally:
        stop_group(process)
    if code:
        raise FleetError(f"the SuperLink was ended: {_how(code)}; start this command again")


@contextmanager
def _alone(fleet: Fleet) -> Iterator[None]:
    """Hold the fleet's lock; the system frees it however this process ends."""
    with (fleet.server / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FleetError(
                f"the server of {fleet.path} runs already; stop it first, or leave it as it is"
            ) from error
        yield


def is_up(fleet: Fleet) -> bool:
    """Whether a server of this fleet runs: it holds the lock."""
    try:
        with _alone(fleet):
            return False
    except FleetError:
        return True


_SOON = datetime.timedelta(days=60)


def _tell_of_end(fleet: Fleet, say: Say) -> None:
    """Warn where devices will soon refuse the server."""
    for name, mended in (
        ("server.crt", f"fedkit fleet renew {fleet.path}"),
        ("ca.crt", "make the fleet anew, since devices trust no other authority"),
    ):
        ends = keys.expires(fleet.server / name)
        if ends - datetime.datetime.now(datetime.UTC) < _SOON:
            say(f"warning: {fleet.server / name} is good until {ends:%Y-%m-%d}; {mended}")


def _end_leftovers(fleet: Fleet, say: Say) -> None:
    """End what a killed server left behind: nobody holds the lock, so nobody watches it."""
    mark = f"FLWR_HOME={fleet.server / 'flwr'}"
    if left := marked(mark):
        say(f"ending {len(left)} processes that an earlier server of this fleet left behind")
        kill_marked(mark)


def _check_port(fleet: Fleet) -> None:
    host = listens_on(fleet.host)
    try:
        found = socket.getaddrinfo(host, fleet.port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as error:
        raise FleetError(
            f"this machine cannot listen on {join_address(host, fleet.port)}: {error.strerror}; "
            "stop what uses the port, or change port in fleet.toml, server/flwr/config.toml and "
            "the devices' device.toml"
        ) from error


def _tell_of_ipv6(fleet: Fleet, say: Say) -> None:
    if address := only_by_ipv6(fleet.host):
        say(
            f"warning: {fleet.host} has IPv6 addresses alone, such as {address}, and with a name "
            f"for its address this server listens on IPv4, so no device will reach it; make the "
            f"fleet with --address {join_address(address, fleet.port)}, or give the name an IPv4 "
            "address"
        )


def _wait_until_up(fleet: Fleet, process: subprocess.Popen[bytes]) -> None:
    """Wait until the SuperLink answers orders. To ask takes seconds: not before it listens."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        if process.poll() is not None:
            raise FleetError(
                f"the SuperLink did not start: {_how(process.returncode)}; what it said is above"
            )
        late = time.monotonic() > deadline
        try:
            if late or _listens(fleet):
                commands.flwr_json(fleet, "supernode", "list")
                return
        except FleetError:
            if late:
                raise
        time.sleep(0.1)


def _listens(fleet: Fleet) -> bool:
    """Whether anything takes connections where orders go."""
    try:
        socket.create_connection((reached_here(fleet.host), fleet.port), 1).close()
    except OSError:
        return False
    return True


def _how(code: int) -> str:
    """Say how a process ended."""
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
