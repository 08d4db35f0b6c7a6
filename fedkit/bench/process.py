"""Processes of their own for what is measured alone: how they start, what memory they take.

They import this module too, so at the top it imports next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def run_json(*arguments: str) -> dict[str, Any]:
    """Run Python on one thread with these arguments; return the JSON of its last line.

    Raises:
        subprocess.CalledProcessError: It failed; what it said went to this process's stderr.
    """
    import json

    result: dict[str, Any] = json.loads(_run(*arguments).splitlines()[-1])
    return result


def _run(*arguments: str) -> str:
    import os
    import subprocess
    import sys
    from pathlib import Path

    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return ended.stdout


def memory(key: str) -> int:
    """Return a memory figure of this process in bytes, as Linux tells it.

    `VmHWM`, the peak, begins with the process; getrusage's begins with the one that started it.

    Args:
        key: A name in `/proc/self/status`, such as VmHWM.

    Raises:
        OSError: This is not Linux.
    """
    with open("/proc/self/status", encoding="utf-8") as status:
        return _figure(status.read(), key)


def idle_memory() -> int:
    """Return the peak of an interpreter that imports and does nothing, in bytes.

    Raises:
        subprocess.CalledProcessError: This is not Linux.
    """
    return _figure(_run("-c", "print(open('/proc/self/status').read())"), "VmHWM")


def _figure(status: str, key: str) -> int:
    line = next(line for line in status.splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def shared_memory(pids: Iterable[int]) -> int:
    """Return the memory of processes in bytes; a page that n processes share is 1 / n of it (PSS).

    Processes that have ended take none.
    """
    from pathlib import Path

    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total
