"""`fedkit bench run`: a whole simulated fleet on the sparse engine, next to the same on torch.

Each run is `fedkit run --in-process` in a process of its own, one device after the other on one
thread: FedTiny on Fashion-MNIST, ResNet-8, ten devices. Both engines get the same configuration
and seed; which of them goes first changes from seed to seed. `seconds` are those of the run: dense
start, selection and rounds; `seconds_rounds` leave the dense start out, in which torch also imports
the rest of itself. `seconds_total` are those of the whole command, with imports, loading, export
and measurement of the artifact.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from fedkit.bench import markdown
from fedkit.bench.process import run_json
from fedkit.core.errors import FleetError
from fedkit.server.checkpoint import RunFolder

ENGINES = ("sparse", "torch")

_FLEET = {"task": "fashion-mnist", "model": "resnet8", "devices": 10, "alpha": 0.5, "density": 0.05}
_FULL = {
    "rounds": 10,
    "epochs": 2,
    "examples_per_device": 300,
    # The dense start is then as small a part of the work as in a run of the defaults.
    "server_epochs": 1,
    "sparse_epochs": 0,
    "test_examples": 2000,
}
_QUICK = {
    "rounds": 2,
    "epochs": 1,
    "examples_per_device": 60,
    "server_share": 0.01,
    "server_epochs": 1,
    "sparse_epochs": 0,
    "test_examples": 500,
}


def bench_run(quick: bool) -> dict[str, Any]:
    """Run the fleet with both engines.

    Args:
        quick: One seed, two rounds and few examples; the accuracies then mean little.

    Raises:
        FleetError: A run failed.
    """
    if quick:
        return compare_engines({**_FLEET, **_QUICK}, seeds=(1,))
    return compare_engines({**_FLEET, **_FULL}, seeds=(1, 2, 3))


def compare_engines(config: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Run each seed with both engines.

    Returns:
        `config`, `seeds`, a row per seed, and the median of every figure of the rows.
    """
    rows = []
    for number, seed in enumerate(seeds):
        order = ENGINES if number % 2 == 0 else ENGINES[::-1]
        rows.append(make_row(seed, {engine: run_engine(config, seed, engine) for engine in order}))
    figures = [name for name in rows[0] if name != "seed"]
    medians = {name: statistics.median(row[name] for row in rows) for name in figures}
    return {"benchmark": "run", "seeds": list(seeds), **config, **medians, "rows": rows}


def make_row(seed: int, runs: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return the figures of one seed, from those of `ENGINES`."""
    sparse, dense = (runs[engine] for engine in ENGINES)
    difference = 100 * (sparse["accuracy"] - dense["accuracy"])
    return {
        "seed": seed,
        "seconds_sparse": sparse["seconds"],
        "seconds_torch": dense["seconds"],
        "ratio": _ratio(runs, "seconds"),
        "seconds_rounds_sparse": sparse["seconds_rounds"],
        "seconds_rounds_torch": dense["seconds_rounds"],
        "ratio_rounds": _ratio(runs, "seconds_rounds"),
        "seconds_total_sparse": sparse["seconds_total"],
        "seconds_total_torch": dense["seconds_total"],
        "ratio_total": _ratio(runs, "seconds_total"),
        "accuracy_sparse": round(sparse["accuracy"], 6),
        "accuracy_torch": round(dense["accuracy"], 6),
        "accuracy_difference_points": round(difference, 4),
    }


def _ratio(runs: Mapping[str, Mapping[str, float]], seconds: str) -> float:
    return round(runs["torch"][seconds] / runs["sparse"][seconds], 3)


def run_engine(config: Mapping[str, Any], seed: int, engine: str) -> dict[str, float]:
    """Run a fleet in a process of its own; return its seconds and its accuracy.

    Raises:
        FleetError: The run failed; what it said went to this process's stderr.
    """
    values = {**config, "seed": seed, "engine": engine}
    flags = [
        part for key, value in values.items() for part in (f"--{key}".replace("_", "-"), value)
    ]
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as out:
        place = ("--in-process", "--json", "--out", out, "--name", engine)
        began = time.perf_counter()
        try:
            summary = run_json("-m", "fedkit", "run", *place, *map(str, flags))
        except CalledProcessError as error:
            raise FleetError(f"the run of seed {seed} on {engine} failed; see above") from error
        total = time.perf_counter() - began
        start = RunFolder.open(Path(out, engine)).metrics()[0]
    return {
        "seconds": summary["seconds"],
        "seconds_rounds": round(summary["seconds"] - start["seconds"], 3),
        "seconds_total": round(total, 3),
        "accuracy": summary["accuracy_sparse"],
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = (
        "| seed | seconds of the run, sparse | torch | faster | whole command, sparse | torch "
        "| faster | accuracy, sparse | torch | difference |"
    )
    rows = (
        f"| {row.get('seed', 'median')} "
        f"| {row['seconds_sparse']:.1f} | {row['seconds_torch']:.1f} | {row['ratio']:.1f}x "
        f"| {row['seconds_total_sparse']:.1f} | {row['seconds_total_torch']:.1f} "
        f"| {row['ratio_total']:.1f}x "
        f"| {row['accuracy_sparse']:.2%} | {row['accuracy_torch']:.2%} "
        f"| {row['accuracy_difference_points']:+.2f} points |"
        for row in [*result["rows"], result]
    )
    return markdown.table(head, rows)
