"""Processes that kill themselves at a point that a test names, as a power cut would."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "devices": 2,
    "partition": "iid",
    "examples_per_device": 24,
    "test_examples": 60,
    "pool_size": 2,
    "rounds": 3,
    "epochs": 1,
    "batch_size": 12,
    "adjust_every": 1,
    "adjust_stop": 3,
    "server_epochs": 1,
    "sparse_epochs": 2,
    "uplink_bits": 4,  # devices remember what did not travel
    "min_share": 1.0,
}
"""A run that is short, and yet adjusts."""

SITECUSTOMIZE = """
import json, os, signal, sys, time

KILL_FILE = os.environ["KILL_FILE"]
PROGRAM = next((os.path.basename(a) for a in sys.orig_argv if "flwr-" in a), "")

def spec():
    try:
        with open(KILL_FILE) as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if found.get("program") == PROGRAM else {}

def reached(path, stage):
    found = spec()
    if found.get("stage") != stage or found["file"] not in str(path):
        return False
    found["count"] -= 1
    if found["count"]:
        with open(KILL_FILE, "w") as file:
            json.dump(found, file)
        return False
    os.unlink(KILL_FILE)
    return True

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if PROGRAM in ("flwr-clientapp", "flwr-serverapp"):
    import fedkit.core.files

    whole = fedkit.core.files.write_atomic

    def write_atomic(path, data):
        if reached(path, "before"):
            die()
        if reached(path, "linger"):
            time.sleep(4)
        if reached(path, "during"):
            path.with_name(f".{path.name}.{os.getpid()}.tmp").write_bytes(data[: len(data) // 2])
            die()
        whole(path, data)
        if reached(path, "after"):
            die()

    fedkit.core.files.write_atomic = write_atomic
"""
"""Stages of writing a file: before it, with half of it written under its temporary name, after it
is in place; `linger` lives on, slowly, so that a test can kill something else."""


class Kill:
    """A point at which a process of the fleet dies, once.

    Args:
        folder: Where to keep it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "kill.json"
        (folder / "modules").mkdir()
        (folder / "modules" / "sitecustomize.py").write_text(SITECUSTOMIZE)
        paths = [str(folder / "modules"), os.environ.get("PYTHONPATH", "")]
        self.environment = {
            "KILL_FILE": str(self.path),
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }

    def at(self, program: str, file: str, stage: str, count: int = 1) -> None:
        """Arm: the count-th time that `program` writes a path with `file` in it."""
        spec: dict[str, Any] = {"program": program, "file": file, "stage": stage, "count": count}
        self.path.write_text(json.dumps(spec))

    @property
    def done(self) -> bool:
        return not self.path.exists()
