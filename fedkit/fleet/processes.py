"""Flower's programs as processes: what they are started with, and how all they started is ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

ENVIRONMENT = {
    # Nothing is fetched or reported while a fleet runs.
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A worker that takes all cores for each device is 10 to 30 times slower.
    "OMP_NUM_THREADS": "1",
}
"""What the SuperLink and its workers must have been started with."""


Value = str | int | float
"""What a key of a Flower command line can be."""


def tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a log."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return "\n".join(text.splitlines()[-lines:])


def toml_pairs(values: Mapping[str, Value]) -> str:
    """Write `values` as Flower's command line takes them: key=value in TOML, by spaces."""
    return " ".join(f"{key}={_toml(value)}" for key, value in values.items())


def _toml(value: Value) -> str:
    r"""Write a value for Flower, which ends a text at the first quote, also at one after a `\`."""
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return re.sub(r"\\(.)", lambda found: r"\u0022" if found[1] == '"' else found[0], text)


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a server answers at `url` with 200."""
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def stop_group(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End a process and all it started: ask first, then kill what is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


_EMPTY_LOOKS = 3


def kill_marked(mark: str, patience: float = 10.0) -> None:
    """Kill what still runs with a variable that starts with `mark`.

    What SuperLink, SuperNode and Ray start are sessions of their own, which outlive a parent that
    died without asking them to stop.
    Only Linux shows a process's environment; elsewhere this finds nothing.
    """
    deadline, looks_left = time.monotonic() + patience, _EMPTY_LOOKS
    while looks_left and time.monotonic() < deadline:
        left = marked(mark)
        # A process between fork and exec shows no environment, so one empty look proves little.
        looks_left = _EMPTY_LOOKS if left else looks_left - 1
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)  # A killed process takes a moment to go, and may have started another.


def marked(mark: str) -> list[int]:
    """Return the processes that run with a variable that starts with `mark`."""
    pids = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            entries = environment.read_bytes().split(b"\0")
            if any(entry.startswith(mark.encode()) for entry in entries):
                pids.append(int(environment.parent.name))
    return pids
