"""Ends what a command started, once the command itself has ended in whatever way.

A process cannot clean up after a SIGKILL of its own. So `fedkit.core.supervise` starts this file as
a process of its own, in a session that no terminal reaches, and marks the environment of all that
is started afterwards. The watcher waits until its parent is gone, kills every process that carries
the mark, and removes the folders it was told of. Flower and Ray start sessions of their own, and a
mark is the one thing that these do not leave behind.

Only Linux shows the environment of a process. Elsewhere the watcher kills the process groups that
it was told of.

It runs with the standard library alone, isolated from every path and variable of the user's.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

MARK = "FEDKIT_MARK"
"""Variable that all carry that a command started: the command's own word and, after a colon each,
those of commands that it started."""

_WORDS = f"{MARK}=".encode()
_EMPTY_LOOKS = 3
_PROCESSES = Path("/proc")


def marked(mark: str) -> list[int]:
    """Return the processes with a variable that starts with `mark`, or with a word of `MARK`.

    Args:
        mark: The beginning of NAME=VALUE, or a word that `MARK` holds.
    """
    pids = []
    for environment in _PROCESSES.glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if _carries(environment.read_bytes(), mark.encode()):
                pids.append(int(environment.parent.name))
    return pids


def _carries(environment: bytes, mark: bytes) -> bool:
    entries = environment.split(b"\0")
    words = [entry.partition(b"=")[2] for entry in entries if entry.startswith(_WORDS)]
    return any(entry.startswith(mark) for entry in entries) or any(
        mark in word.split(b":") for word in words
    )


def kill_marked(mark: str, patience: float = 10.0) -> None:
    """Kill what carries `mark`, as `marked` finds it; only Linux shows that.

    Args:
        mark: See `marked`.
        patience: Seconds after which what still comes up is left.
    """
    deadline, looks_left = time.monotonic() + patience, _EMPTY_LOOKS
    while looks_left and time.monotonic() < deadline:
        left = marked(mark)
        # A process between fork and exec shows no environment, so one empty look proves little.
        looks_left = _EMPTY_LOOKS if left else looks_left - 1
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)  # A killed process takes a moment to go, and may have started another.


class _Told:
    """What the parent said: a kind and a path or number per line."""

    def __init__(self) -> None:
        self._text = b""

    def hear(self, parent: int) -> None:
        """Listen until the parent is gone. A closed pipe says so at once, or that it has exec'd."""
        pause = 0.0  # of looking for the parent; the pipe is open as long as there is none
        while os.getppid() == parent:
            if pause:
                time.sleep(pause)
                pause = min(1.0, 2 * pause)
            elif select.select([0], [], [], 1.0)[0]:
                text = os.read(0, 65536)
                self._text += text
                pause = 0.0 if text else 0.01
        # On a busy machine it may be gone before this process heard a word.
        while select.select([0], [], [], 0)[0] and (text := os.read(0, 65536)):
            self._text += text

    def all(self, kind: str) -> list[str]:
        """Return what was told of a kind and not taken back."""
        lines = [line.partition(" ") for line in os.fsdecode(self._text).split("\n")[:-1]]
        over = {value for word, _, value in lines if word == f"-{kind}"}
        return [value for word, _, value in lines if word == kind and value not in over]


def main(parent: int, mark: str) -> None:
    """Wait for the parent's end, and end what is left of it.

    Args:
        parent: Process whose child this is.
        mark: What all it started carry in their `MARK`.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    told = _Told()
    told.hear(parent)
    if _PROCESSES.is_dir():
        kill_marked(mark)
    else:
        for group in told.all("group"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(int(group), signal.SIGKILL)
    for folder in told.all("folder"):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
