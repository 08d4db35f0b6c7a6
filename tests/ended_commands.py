"""Commands that are ended at any moment, and what must be left of them."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from tests.processes import HANG, catches, left_running, started, wait_for

HOLD = """
import sys, time
from pathlib import Path
from fedkit.server.checkpoint import RunFolder
with RunFolder.open(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(3600)
"""
"""Holds the run folder that it is given."""

GRID = """
name = "tiny"
[run]
devices = 2
rounds = 2
epochs = 1
examples_per_device = 40
test_examples = 100
server_epochs = 0
sparse_epochs = 0
[axes]
seed = [1, 2, 3, 4]
"""


def kill_at(folder: Path, arguments: list[str], seconds: float, number: int) -> int:
    """Start a command, end it so long after, and see that nothing of it is left."""
    with started(folder, "-m", "fedkit", *arguments) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            begun = catches(process.pid, signal.SIGTERM)
            process.send_signal(number)
        else:
            begun = True
        _, err = process.communicate(timeout=HANG)
        # Before it has begun, it is Python that is stopped, with its own words.
        assert not begun or ("Traceback" not in err and "terminate called" not in err), err
        assert_all_gone(folder)
    return process.returncode


def expected_codes(number: int) -> set[int]:
    """0: it was done before; the signal's own, or 1, where Python had not begun."""
    return {0, -number} if number == signal.SIGKILL else {0, 128 + number, -number, 1}


def assert_all_gone(folder: Path) -> None:
    wait_for(lambda: not left_running(f"FEDKIT_TEST={folder}"))
    assert not left_running(f"FEDKIT_TEST={folder}")
