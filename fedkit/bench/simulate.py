"""`fedkit bench simulate`: what a round of a large simulated fleet costs, beside stock Flower.

Dense FedAvg of ResNet-8 over devices that hold 20 noisy digits each and make two steps. The stock
runner is an app like Flower's quickstart, a torch model and Flower's FedAvg on Ray
(`fedkit/bench/stock`). The others are ours: behind `flwr run` on Ray, through Flower in forks (what
`fedkit run` does) and without Flower. All start from the same weights; models that end apart are an
error.

Each run is a process of its own. Seconds to the first round are from its start to the end of that
round, seconds per round the median of the others. Memory is that of all its processes, each page
shared by n processes counted as 1 / n of it (PSS), looked at five times a second.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedkit.bench import markdown
from fedkit.bench.process import shared_memory
from fedkit.bench.simulate_child import MODEL, RUNNERS, TIMES
from fedkit.bench.simulate_task import DEVICES, task
from fedkit.core.errors import BenchError
from fedkit.core.side_by_side import cores
from fedkit.core.supervise import forget_group, guard, tell_group, temporary_folder
from fedkit.flower.processes import kill_marked, marked, stop_group, tail

_STOCK, _SEED = "stock-flower-ray", 1
_OWN = ("fedkit-flower", "fedkit-process")
_CELLS = (
    # (devices, asked in a round, rounds, runners)
    (10, 10, 20, tuple(RUNNERS)),
    (100, 100, 10, tuple(RUNNERS)),
    (1000, 1000, 3, tuple(RUNNERS)),
    (10_000, 100, 10, _OWN),
)
_QUICK = ((4, 4, 3, tuple(RUNNERS)), (8, 2, 3, _OWN))
_LOOK_SECONDS = 0.2
_APART = 0.05
"""Largest distance of two models, as a share of the way that one has gone from the start."""


def bench_simulate(quick: bool) -> dict[str, Any]:
    """Run all runners for fleets of several sizes.

    Args:
        quick: Two small fleets, three rounds.

    Raises:
        BenchError: A simulation failed, or its model is not that of the others.
    """
    rows = []
    for devices, per_round, rounds, runners in _QUICK if quick else _CELLS:
        cell = {"devices": devices, "per_round": per_round, "rounds": rounds, "workers": cores()}
        rows += _compared([_row(runner, cell) for runner in runners])
    return {"benchmark": "simulate", "seed": _SEED, "workers": cores(), "rows": rows}


def _compared(measured: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of one fleet with their ratios to stock Flower; all models must be one."""
    rows, models = [row for row, _ in measured], [model for _, model in measured]
    for row, model in zip(rows, models, strict=True):
        if (apart := _distance(model, models[0])) > _APART:
            raise BenchError(
                f"the model of {row['runner']} is {apart:.0%} away from that of "
                f"{rows[0]['runner']}; they did not do the same work"
            )
    stock = rows[0]["seconds_per_round"] if rows[0]["runner"] == _STOCK else None
    for row in rows:
        ratio = None if stock is None else round(stock / row["seconds_per_round"], 2)
        row["rounds_per_second_ratio_stock"] = ratio
    return rows


def _distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return how far two models are apart, as a share of the way of the second from the start."""
    weights = task.build_model(_SEED, "").named_parameters()
    start = {name: value.detach().numpy() for name, value in weights}
    apart = sum(float(np.square(one[name] - other[name]).sum()) for name in start)
    gone = sum(float(np.square(value - other[name]).sum()) for name, value in start.items())
    return float(np.sqrt(apart / gone))


def _row(runner: str, cell: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a simulation; return its row and its model."""
    with temporary_folder("fedkit-bench-") as folder:
        (folder / "log").touch()
        began = time.time()
        with _running(runner, cell, folder) as process, _peak(folder) as peak:
            process.wait()
        ended = [float(line) for line in _lines(folder / TIMES)]
        if process.returncode or len(ended) != cell["rounds"]:
            raise BenchError(
                f"{runner} ended after {len(ended)} of {cell['rounds']} rounds (exit code "
                f"{process.returncode}); it said:\n{tail(folder / 'log', 30)}"
            )
        seconds = [after - before for before, after in itertools.pairwise(ended)]
        row = {
            "runner": runner,
            "devices": cell["devices"],
            "per_round": cell["per_round"],
            "seconds_to_first_round": round(ended[0] - began, 2),
            "seconds_per_round": round(statistics.median(seconds), 4),
            "rounds_per_second_ratio_stock": None,
            "peak_bytes": peak[0],
        }
        with np.load(folder / MODEL) as model:
            return row, dict(model)


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.is_file() else []


@contextmanager
def _running(runner: str, cell: dict[str, Any], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a simulation; all it started is gone at the end."""
    guard()
    own = {DEVICES: str(cell["devices"]), _MARK: str(folder), "FLWR_TELEMETRY_ENABLED": "0"}
    command = ["-m", "fedkit.bench.simulate_child", runner, json.dumps(cell), str(folder)]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **own, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    tell_group(process)
    try:
        yield process
    finally:
        stop_group(process)
        forget_group(process)
        kill_marked(f"{_MARK}={folder}")


_MARK = "FEDKIT_BENCH_SIMULATION"


@contextmanager
def _peak(folder: Path) -> Iterator[list[int]]:
    """Look at the memory of a simulation until the end; the list's one figure is the most."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_SECONDS):
            peak[0] = max(peak[0], shared_memory(marked(f"{_MARK}={folder}")))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = (
        "| runner | devices | of them a round | first round after, s | s per round "
        "| rounds per second, stock = 1 | memory, at most |"
    )
    rows = (
        f"| {row['runner']} | {row['devices']:,} | {row['per_round']:,} "
        f"| {row['seconds_to_first_round']:.1f} | {row['seconds_per_round']:.2f} "
        f"| {_ratio(row['rounds_per_second_ratio_stock'])} | {markdown.mb(row['peak_bytes'])} |"
        for row in result["rows"]
    )
    return markdown.table(head, rows)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
