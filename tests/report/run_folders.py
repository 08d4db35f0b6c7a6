"""Run folders that no run has made: of any length, with any text, with any damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedkit.config import make_config
from fedkit.server.checkpoint import RunFolder
from fedkit.server.rounds import Report
from fedkit.server.shares import Shares
from fedkit.sparse.layout import Layout
from fedkit.sparse.state import ModelState


def step(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "phase": "round",
        "round": number,
        "accuracy": 0.5 + number / 1e6,
        "loss": 1 / (number + 1),
        "density": 0.1,
        "bytes_down": 100 + number,
        "bytes_up": 50,
        "seconds": 0.5 * number,
        **changes,
    }


def write_steps(path: Path, steps: list[dict[str, Any]]) -> None:
    (path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in steps))


def make_run(path: Path, steps: list[dict[str, Any]] | None = None, **config: Any) -> RunFolder:
    """A folder with a config and steps alone."""
    folder = RunFolder.create(path, make_config({"devices": 2, "rounds": 3, **config}))
    if steps is not None:
        write_steps(path, steps)
    return folder


def keep_model(folder: RunFolder, kept: dict[str, tuple[int, int]]) -> None:
    """Store a checkpoint of layers, name -> (kept weights, all weights), after round 3."""
    shapes = {name: (size,) for name, (_, size) in kept.items()}
    masks = {name: np.arange(size) < count for name, (count, size) in kept.items()}
    weights = {name: mask.astype(np.float32) for name, mask in masks.items()}
    state = ModelState(weights, {}, masks)
    before = (folder.path / "metrics.jsonl").read_bytes()
    report = Report("round", 3, 0.5, 1.0, state.density, 1, 2, state)
    folder.append(report, Layout(shapes, {}, tuple(kept)), {})
    (folder.path / "metrics.jsonl").write_bytes(before)


def keep_shares(folder: RunFolder, devices: int, classes: int) -> Shares:
    """Give device d examples of class (d + k) % classes, k + 1 of them."""
    counts = np.zeros((devices, classes), np.int64)
    for device in range(devices):
        for k in range(min(3, classes)):
            counts[device, (device + k) % classes] = k + 1
    held = tuple(np.arange(total) for total in (counts.sum(1) if classes else [3] * devices))
    shares = Shares(np.arange(2), held, 10 * np.arange(classes), counts)
    folder.keep_shares(shares)
    return shares
