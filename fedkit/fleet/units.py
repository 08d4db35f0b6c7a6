"""systemd units: server and devices start with their machine, confined, and never as root."""

from __future__ import annotations

import os
import pwd
import re
import sys
from pathlib import Path

from fedkit.core.errors import FleetError
from fedkit.core.files import write_atomic

SERVER_UNIT, DEVICE_UNIT = "fedkit-server.service", "fedkit-device.service"

SERVER_MEMORY, DEVICE_MEMORY = "2G", "800M"
"""Above these systemd ends a unit and starts it again, instead of the board running out."""

ACCOUNT = "fedkit"
"""Account of a service where no other is known: `useradd --system fedkit` makes it."""

_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./-]*")

_UNIT = """\
[Unit]
Description=fedkit {what}
Wants=network-online.target time-sync.target
After=network-online.target time-sync.target

[Service]
# Never root: anyone who may give orders runs code as this account. It must own the folder below.
User={account}
ExecStart={command}
Restart=always
RestartSec=10
MemoryMax={memory}
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={folder}
ProtectControlGroups=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictSUIDSGID=yes
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""


def server_unit(fleet: Path) -> str:
    """Return the unit of a fleet's server: for this machine, and the account that makes it.

    Raises:
        FleetError: A path cannot stand in a unit.
    """
    program = Path(sys.executable).with_name("fedkit")
    return _unit("server", program, fleet, SERVER_MEMORY, account())


def device_unit(name: str) -> str:
    """Return the unit of a device whose folder is copied to /opt/fedkit/NAME."""
    program = Path("/opt/fedkit/venv/bin/fedkit")
    return _unit("device", program, Path("/opt/fedkit", name), DEVICE_MEMORY, ACCOUNT)


def write_server_unit(folder: Path, fleet: Path) -> None:
    """Write `server_unit` into a folder."""
    write_atomic(folder / SERVER_UNIT, server_unit(fleet).encode())


def write_device_unit(folder: Path, name: str) -> None:
    """Write `device_unit` into a folder."""
    write_atomic(folder / DEVICE_UNIT, device_unit(name).encode())


def account() -> str:
    """Return the account that this process runs as, by name if it has one; for root, `ACCOUNT`."""
    if os.geteuid() == 0:
        return ACCOUNT
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _unit(what: str, program: Path, folder: Path, memory: str, account: str) -> str:
    for path in (program, folder):
        _check(path)
    if "$" in str(program):
        raise FleetError(f"{program} holds a dollar sign, which no systemd unit can start: move it")
    command = " ".join(map(quoted, (str(program), "fleet", what, str(folder).replace("$", "$$"))))
    return _UNIT.format(
        what=what, account=account, command=command, memory=memory, folder=quoted(str(folder))
    )


def _check(path: Path) -> None:
    text = str(path)
    if not text.isprintable():
        raise FleetError(
            f"the path {text!a} holds a line end or another character that is not printed, "
            "and cannot stand in a systemd unit; choose another folder"
        )


def quoted(text: str) -> str:
    """Return printable text as one word of a systemd setting.

    Between double quotes systemd gives a meaning to the quote, the backslash and, as everywhere,
    to the per cent sign of its specifiers. (To `$` too, in commands alone.)
    """
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
