"""`fedkit fleet status`: what the server and the last run's events tell, as JSON and as a table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from fedkit.cli.tables import size
from fedkit.core.errors import FleetError
from fedkit.core.text import cut
from fedkit.fleet import commands
from fedkit.fleet.folder import Fleet, read_nodes
from fedkit.server.events import EVENTS
from fedkit.server.status import FleetStatus

NOTE = "online: Flower heard of it within a minute; last seen: when it answered last"


def status_of(fleet: Fleet) -> dict[str, Any]:
    """Return what is known of a fleet: its server, its last run, and each device."""
    runs = [path for path in fleet.runs.glob("*") if (path / EVENTS).is_file()]
    last = max(runs, key=lambda path: (path / EVENTS).stat().st_mtime, default=None)
    known = FleetStatus.of(last / EVENTS) if last else FleetStatus()
    connected = _connected(fleet)
    devices = []
    for index in range(fleet.devices):
        about = vars(known.devices[index]) if index in known.devices else {}
        seen = "revoked" if index in fleet.revoked else connected.get(index, "unknown")
        names = {"device": index, "name": fleet.name(index)}
        devices.append({**names, "connection": seen, **about})
    return {
        "fleet": str(fleet.path),
        "server": "up" if connected else "down, or no device is registered",
        "run": last.name if last else "",
        **{key: value for key, value in vars(known).items() if key not in ("devices", "metric")},
        **({} if known.metric is None else {"metric": known.metric}),
        "devices": devices,
    }


def _connected(fleet: Fleet) -> dict[int, str]:
    """Return what Flower says of each registered device; nothing where no server answers."""
    nodes = read_nodes(fleet)
    if not nodes:
        return {}
    try:
        listed = commands.flwr_json(fleet, "supernode", "list")["nodes"]
        return {
            nodes[int(each["node-id"])]: str(each["status"])
            for each in listed
            if int(each["node-id"]) in nodes
        }
    except (FleetError, KeyError, TypeError, ValueError):
        return {}


def status_table(found: Mapping[str, Any]) -> Group:
    """Return the status for a terminal of 80 columns: no line is longer, nothing is cut off."""
    head = Table("", Column(overflow="fold"), show_header=False, box=None, pad_edge=False)
    for key in ("fleet", "server", "run"):
        head.add_row(key, found[key] or "none yet")
    if found["run"]:
        head.add_row("round", f"{found['round']} of {found['rounds']}")
        metric = FleetStatus(metric=found.get("metric")).measure
        head.add_row(metric.name, metric.text(found["accuracy"]))
        head.add_row("density", f"{found['density']:.2%}")
        head.add_row("bytes", f"{size(found['bytes_down'])} down, {size(found['bytes_up'])} up")
    body = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in _COLUMNS:
        body.add_column(
            name, justify="left" if name in _WORDS else "right", no_wrap=name != "state"
        )
    for each in found["devices"]:
        body.add_row(*_row(each))
    return Group(head, body, Text(NOTE, style="dim"))


_NAME = 12
"""Characters of a device's name that a terminal of 80 columns has room for."""

_WORDS = ("connection", "last seen")
_COLUMNS = (
    "device",
    *_WORDS,
    "answers",
    "refused",
    "failed",
    "absent",
    "sent",
    "memory",
)


def _row(each: Mapping[str, Any]) -> list[str]:
    connection = "quarantined" if each.get("quarantined") else each["connection"]
    counts = [_count(each.get(key, 0)) for key in ("answers", "refused", "failed", "absent")]
    sizes = [_bytes(each.get(key, 0)) for key in ("bytes_up", "peak_bytes")]
    return [cut(each["name"], _NAME), connection, ago(each.get("seen", 0.0)), *counts, *sizes]


def _count(number: int) -> str:
    """Write a number in at most 6 characters."""
    return str(number) if number < 1_000_000 else f"{number / 1e6:.0f}M"


def _bytes(count: float) -> str:
    """Write a number of bytes in at most 7 characters; nothing for 0."""
    unit = next((unit for unit in _UNITS if count < 999.5 * unit[1]), _UNITS[-1])
    return f"{count / unit[1]:.0f} {unit[0]}" if count else ""


_UNITS = (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12))


def ago(seen: float) -> str:
    """Say how long ago a time in seconds since 1970 was, in at most 10 characters; 0 is never."""
    if not seen:
        return "never"
    seconds = max(0.0, time.time() - seen)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds // 1:.0f} s ago"
