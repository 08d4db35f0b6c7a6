"""Processes of a test, found by a variable that the test gave to the first of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HANG = 600.0
"""Seconds after which a wait is taken for a hang; no test waits so long where all is well."""


def left_running(mark: str) -> list[str]:
    """Return the command lines of processes that have `mark` in their environment."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in entry.read_bytes().split(b"\0"):
                lines.append((entry.parent / "cmdline").read_text().replace("\0", " "))
    return lines


def wait_for(found: Callable[[], object], seconds: float = HANG) -> None:
    """Wait until `found` finds something."""
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@contextmanager
def started(folder: Path, *command: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start Python with arguments, marked by `FEDKIT_TEST=folder`; nothing is left at the end."""
    mark = f"FEDKIT_TEST={folder}"
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "FEDKIT_TEST": str(folder), **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_with_default_signals,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        kill_left(mark)


def _with_default_signals() -> None:
    # Where the tests themselves run in the background, Ctrl-C is ignored, also by children.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def kill_left(mark: str) -> None:
    """Kill what a test left, so that one failure does not become many."""
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in entry.read_bytes().split(b"\0"):
                os.kill(int(entry.parent.name), signal.SIGKILL)
