"""Two hundred rounds: the server's memory stays flat, and it opens no more and more files."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from fedkit.config import make_config
from fedkit.flower.processes import marked, tail
from fedkit.server.checkpoint import RunFolder
from sim.simulation import FlowerSimulation

CONFIG = make_config(
    {
        "devices": 8,
        "rounds": 200,
        "epochs": 1,
        "partition": "iid",
        "examples_per_device": 24,
        "test_examples": 60,
        "server_epochs": 1,
        "sparse_epochs": 1,
        "adjust_every": 10,
        "measure_every": 50,
    }
)

SERVERS = ("flower-superlink", "flwr-simulation")
"""The SuperLink, and the process that the ServerApp runs in."""


def look(home: str) -> dict[str, tuple[int, int]]:
    """Memory in bytes and open files of each server process."""
    found = {}
    for pid in marked(f"FLWR_HOME={home}"):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            status = Path(f"/proc/{pid}/status").read_text()
            files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except OSError:
            continue
        name = next((s for s in SERVERS if any(Path(w).name == s for w in words[:3])), "")
        if name:
            line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            found[name] = 1024 * int(line.split()[1]), files
    return found


@pytest.mark.slow
def test_the_server_neither_grows_nor_keeps_files_open(tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int, int]]] = {name: [] for name in SERVERS}
    folder = tmp_path / "run"
    with FlowerSimulation(tmp_path / "log") as simulation:
        process = simulation.submit(CONFIG, folder, workers=2)
        home = simulation.home
        while process.poll() is None:
            time.sleep(1.0)
            done = rounds_of(folder)
            for name, (memory, files) in look(home).items():
                seen[name].append((done, memory, files))
    assert rounds_of(folder) == CONFIG.rounds, tail(tmp_path / "log", 60)
    for name, samples in seen.items():
        quarters = [within(samples, first, first + 50) for first in (50, 150)]
        held = [statistics.median(each[1] for each in quarter) for quarter in quarters]
        opened = [statistics.median(each[2] for each in quarter) for quarter in quarters]
        print(name, held, opened)
        assert held[1] < 1.05 * held[0], name
        assert opened[1] <= opened[0] + 2, name


def within(samples: list[tuple[int, int, int]], first: int, last: int) -> list[Any]:
    return [sample for sample in samples if first <= sample[0] < last]


def rounds_of(folder: Path) -> int:
    lines = RunFolder(folder).metrics()
    return lines[-1]["round"] if lines else 0
