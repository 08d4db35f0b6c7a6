"""systemd units: server and devices start with their machine, and within limits of memory."""

from __future__ import annotations

import sys
from pathlib import Path

from fedkit.files import write_whole

SERVER_MEMORY, DEVICE_MEMORY = "2G", "800M"
"""Above these systemd ends a unit and starts it again, instead of the board running out."""

_UNIT = """\
[Unit]
Description=fedkit {what}
Wants=network-online.target time-sync.target
After=network-online.target time-sync.target

[Service]
WorkingDirectory={folder}
ExecStart={program} fleet {command}
Restart=always
RestartSec=10
MemoryMax={memory}
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ReadWritePaths={folder}

[Install]
WantedBy=multi-user.target
"""


def write_server_unit(folder: Path, fleet: Path) -> None:
    """Write `fedkit-server.service`, for the machine and the folder where the fleet was made."""
    program = Path(sys.executable).with_name("fedkit")
    text = _UNIT.format(
        what="server", folder=fleet, program=program, command=f"server {fleet}",
        memory=SERVER_MEMORY,
    )  # fmt: skip
    write_whole(folder / "fedkit-server.service", text.encode())


def write_device_unit(folder: Path, name: str) -> None:
    """Write `fedkit-device.service`, for a device whose folder is copied to /opt/fedkit/NAME."""
    home = f"/opt/fedkit/{name}"
    text = _UNIT.format(
        what="device", folder=home, program="/opt/fedkit/venv/bin/fedkit",
        command=f"device {home}", memory=DEVICE_MEMORY,
    )  # fmt: skip
    write_whole(folder / "fedkit-device.service", text.encode())
