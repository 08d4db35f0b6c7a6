"""Flower's programs as processes: what they are started with, and how all they started is ended."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from fedkit.core.watch import kill_marked, marked

__all__ = [
    "ENVIRONMENT",
    "Value",
    "answers",
    "free_port",
    "kill_marked",
    "marked",
    "past_proxies",
    "stop_group",
    "tail",
    "toml_pairs",
]

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


_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def past_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what keeps a program's questions to this very machine away from proxies.

    A proxy that the network needs would look for our SuperLink on its own loopback interface. Both
    spellings are set, each after what it held: programs differ in which one they read.

    Args:
        environment: What else the program is started with.
    """
    names = ("no_proxy", "NO_PROXY", "no_grpc_proxy")
    before = [part.strip() for name in names for part in environment.get(name, "").split(",")]
    joined = ",".join(dict.fromkeys([*filter(None, before), *_LOOPBACK]))
    return {**dict.fromkeys(names, joined), **_without_socks(environment)}


def _without_socks(environment: Mapping[str, str]) -> dict[str, str]:
    """Empty the proxies that Flower's client refuses to start with, whatever it is to ask."""
    if importlib.util.find_spec("socksio") is not None:
        return {}
    named = {key: value for key, value in environment.items() if key.lower().endswith("_proxy")}
    return {key: "" for key, value in named.items() if value.lower().startswith("socks")}


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(url: str) -> bool:
    """Whether a server of this machine answers at `url` with 200; no proxy is asked."""
    try:
        with _DIRECT.open(url, timeout=1) as response:
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
