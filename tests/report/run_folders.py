"""Run folders that no run has made: of any length, with any text, with any damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedkit.config import make_config
from fedkit.core.files import write_atomic
from fedkit.server.checkpoint import RunFolder
from fedkit.server.rounds import Report
from fedkit.server.shares import Shares
from fedkit.sparse.layout import Layout
from fedkit.sparse.state import ModelState

EVIL = "</script><script>alert(1)</script><img src=http://evil onerror=alert(2)>\x1b[2J\"'&"
"""What would act in a page, in a terminal and in an attribute."""


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
    text = "".join(json.dumps(each) + "\n" for each in steps)
    write_atomic(path / "metrics.jsonl", text.encode())  # somebody may read it meanwhile


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


def moved(kept: int, pruned: int = 0, grown: int = 0, of_first: int | None = None) -> Any:
    """What a line says of a layer that its step changed."""
    first = kept if of_first is None else of_first
    return {"kept": kept, "pruned": pruned, "grown": grown, "of_first": first}


def whole(path: Path) -> Path:
    """A run of which every file is there."""
    dense = {"conv": moved(12), "linear": moved(4)}
    pruned = {"conv": moved(3, 9), "linear": moved(1, 3)}
    steps = [
        step(0, phase="start", loss=None, layers=dense),
        step(0, phase="selection", layers=pruned),
        step(1, layers={"conv": moved(3, 2, 2, 1)}),
        step(2),
    ]
    folder = make_run(path, [*steps, step(3, accuracy=None)])
    keep_model(folder, {"conv": (3, 12), "linear": (1, 4)})
    keep_shares(folder, 2, 4)
    manifest = {
        "manifest_version": 2,
        "target": "tflite",
        "size": 1234,
        "sha256": "ab" * 32,
        "measured": {"accuracy_int8": 0.625, "runtime": "some"},
        "versions": {"flatbuffers": "9.8.7"},
        "provenance": {"fedkit": "0.0.9"},
    }
    (path / "model-int8.tflite.json").write_text(json.dumps(manifest))
    summary = {"finished": True, "command": "fedkit run --x", "commit": "c0ffee", "warnings": ["w"]}
    (path / "summary.json").write_text(json.dumps({**summary, "processor": "some cpu"}))
    return path


def hostile(folder: Path, text: str) -> Path:
    """A run in which everything that is text is `text`."""
    name = text.replace("/", "_").replace("\0", "")[:60]
    path = whole(folder / f"n{name}")
    about = {"name": text, "higher_is_better": True, "form": text}
    told = {"metric": about, "note": text, "layers": {text: moved(1, 1, 1)}}
    write_steps(path, [step(n, **told) for n in range(3)])
    manifest = {"manifest_version": 2, "target": text, "size": text, "sha256": text,
                "measured": {text: 1.0}, "versions": {text: text}}  # fmt: skip
    (path / "model.json").write_text(json.dumps(manifest))
    keys = ("command", "commit", "processor", "engine")
    summary = {**dict.fromkeys(keys, text), "warnings": [text], "finished": True}
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "error.txt").write_bytes(text.encode(errors="replace"))
    event = {"event": "failed", "device": 0, "reason": text, "phase": text}
    (path / "events.jsonl").write_text(
        json.dumps({"event": "serve", "devices": 1, "rounds": 1}) + "\n" + json.dumps(event) + "\n"
    )
    return path
