"""Results of comparisons that no grid has made: of any size, with any text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

METHODS = [f"method{number}" for number in range(15)]


def hash_of(text: str) -> int:
    return sum(text.encode())


def row(method: str, density: float, seed: int, **changes: Any) -> dict[str, Any]:
    accuracy = ((hash_of(method) + 7 * seed) % 100 + 100 * density) / 300
    return {
        "task": "digits",
        "model": "resnet8",
        "method": method,
        "density": density,
        "alpha": 0.5,
        "seed": seed,
        "rounds": 4,
        "devices": 5,
        "accuracy": accuracy,
        "bytes_up": 1_000_000 + round(5e7 * density) + seed,
        "bytes_down": 2_000_000 + round(5e7 * density),
        "seconds": 1.5,
        "commit": "c0ffee",
        **changes,
    }


def result_of(rows: list[dict[str, Any]], *axes: str) -> dict[str, Any]:
    return {
        "benchmark": "compare",
        "name": "some",
        "seeds": sorted({row["seed"] for row in rows}),
        "grid": {"run": {}, "axes": {axis: [] for axis in axes}},
        "command": "fedkit compare some.toml",
        "commit": "later",
        "rows": rows,
    }


def some(methods: list[str], seeds: int = 3) -> dict[str, Any]:
    rows = [row("dense", 1.0, seed) for seed in range(seeds)]
    axes = itertools.product(methods, (0.01, 0.05, 0.2), range(seeds))
    return result_of([*rows, *(row(*cell) for cell in axes)], "method", "density", "seed")


def of_values(**values: Sequence[float]) -> dict[str, Any]:
    """One density, with the metric of each method by seed."""
    rows = [
        row(method, 0.1, seed, accuracy=value)
        for method, found in values.items()
        for seed, value in enumerate(found)
    ]
    return result_of(rows, "method", "seed")
