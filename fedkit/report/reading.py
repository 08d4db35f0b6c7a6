"""What a run folder holds, read for people: whatever is whole of it, and what is missing.

A run may be going on, killed or copied in part, and its files may be somebody else's: no file of
it ends the reading, and none is trusted.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedkit.core.errors import CheckpointError, FedkitError
from fedkit.core.files import read_whole
from fedkit.report.run_steps import Step, is_number, metric_of
from fedkit.server.checkpoint import SHARES, RunFolder
from fedkit.server.events import EVENTS, read_events
from fedkit.server.participation import order
from fedkit.server.shares import Shares
from fedkit.server.status import DeviceStatus, FleetStatus
from fedkit.tasks.task import ACCURACY, Metric

MOST_TOLD = 20
"""Refusals and failures of devices that are kept; the last ones."""

_MOST_BYTES = 1 << 24
"""Of a manifest or summary; ours hold some thousand."""

_MOST_ERROR = 4000


@dataclass(frozen=True)
class LayerDensity:
    """A prunable layer of the last checkpoint: its weight's name and shape, and kept weights."""

    name: str
    shape: tuple[int, ...]
    kept: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Kept weights of all, 0 .. 1; 1 of a layer without weights."""
        return self.kept / self.size if self.size else 1.0


@dataclass(frozen=True)
class ArtifactLayer:
    """An op of an artifact.

    Attributes:
        source: The module that it comes from.
        kind: What it does.
        shape: Of its output, for one example.
        weights: How many; 0 without weights.
        kept: How many of them are not zero.
        macs: Multiplications of one example if all weights were kept.
        macs_kept: Those by weights that are not zero.
        bytes: Its constants, as the artifact holds them.
        error: Noise over signal of its integers against the float values; None: not known.
    """

    source: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    macs: int
    macs_kept: int
    bytes: int
    error: float | None


Look = Callable[[Path], Sequence[ArtifactLayer]]
"""Returns the layers of the artifact at a path, or raises a FedkitError that says why not."""


def look_at_none(path: Path) -> Sequence[ArtifactLayer]:
    """Tell nothing of an artifact."""
    del path
    return ()


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    Attributes:
        path: Its folder.
        state: "running", "finished", "failed" or "stopped".
        steps: Whole lines of metrics.jsonl.
        config: Its keys; none where config.toml is damaged.
        metric: What `accuracy` of its steps is.
        layers: Of the last checkpoint.
        shares: What each simulated device holds; None of real devices.
        summary: Of a finished run.
        manifests: Name of each artifact -> its manifest.
        artifacts: Name of each artifact -> its layers, as far as they are known.
        costs: Rows of `fedkit bench device` that lie in the folder as JSON.
        devices: Of a fleet that logs events, by index.
        took_part: Of a simulation in which not every device does: device -> rounds in which it
            was asked.
        told: Last refusals and failures of devices, oldest first.
        error: Why it ended early, or "".
        missing: What could not be read and why, a sentence each.
    """

    path: Path
    state: str
    steps: Sequence[Step]
    config: Mapping[str, Any] = field(default_factory=dict)
    metric: Metric = ACCURACY
    layers: Sequence[LayerDensity] = ()
    shares: Shares | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    manifests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    artifacts: Mapping[str, Sequence[ArtifactLayer]] = field(default_factory=dict)
    costs: Sequence[Mapping[str, Any]] = ()
    devices: Mapping[int, DeviceStatus] = field(default_factory=dict)
    took_part: Mapping[int, int] = field(default_factory=dict)
    told: Sequence[Mapping[str, Any]] = ()
    error: str = ""
    missing: Sequence[str] = ()


Named = Sequence[tuple[Run, str]]
"""Runs, and the name of each in a report."""


def read_run(path: Path, look: Look = look_at_none) -> Run:
    """Read all that a run folder holds.

    Args:
        path: The folder.
        look: Tells the layers of an artifact.

    Raises:
        CheckpointError: It is no run folder.
    """
    folder, missing = RunFolder.open(path), list[str]()
    steps, config = _steps(folder, missing), _config(folder, missing)
    summary, manifests = _summary(path, missing), _manifests(path)
    devices = FleetStatus.of(path / EVENTS).devices
    return Run(
        path,
        _state(folder, steps, config, summary),
        steps,
        config,
        metric_of(steps),
        _layers(folder, missing),
        _shares(folder, missing),
        summary,
        manifests,
        _artifacts(path, manifests, look, missing),
        _costs(path),
        devices,
        {} if devices else _took_part(folder, steps),
        _told(path / EVENTS),
        _error(path),
        missing,
    )


def read_state(path: Path) -> Run:
    """Read how far a run came, and nothing that takes long.

    Raises:
        CheckpointError: It is no run folder.
    """
    folder, missing = RunFolder.open(path), list[str]()
    steps, config = _steps(folder, missing), _config(folder, missing)
    state = _state(folder, steps, config, _summary(path, []))
    return Run(path, state, steps, config, metric_of(steps), missing=missing)


def _state(folder: RunFolder, steps: Sequence[Step], config: Step, summary: Step) -> str:
    if summary.get("finished") is True:
        return "finished"
    if folder.is_held:
        return "running"
    if (folder.path / "error.txt").is_file():
        return "failed"
    ended = steps and "rounds" in config and steps[-1]["round"] >= config["rounds"]
    return "finished" if ended else "stopped"


def _steps(folder: RunFolder, missing: list[str]) -> list[dict[str, Any]]:
    path = folder.path / "metrics.jsonl"
    if not path.is_file():  # nor is a pipe one, which nobody may ever write to
        missing.append("metrics.jsonl: there is none, no step was stored")
        return []
    steps = folder.metrics()
    with path.open("rb") as file:
        lost = sum(1 for line in file if line.strip()) - len(steps)
    if lost > 0:
        missing.append(f"metrics.jsonl: left out: {_times(lost, 'line')} that cannot be read")
    if odd := sum(not is_number(step[key]) for step in steps for key in _drawn(step)):
        missing.append(f"metrics.jsonl: not drawn: {_times(odd, 'value')}, NaN or infinite")
    if steps and not any("layers" in step for step in steps):
        missing.append(
            "metrics.jsonl: which weights moved; runs of older versions did not record it"
        )
    return steps


def _times(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _drawn(step: Step) -> list[str]:
    return [key for key in ("accuracy", "loss") if step[key] is not None]


def _config(folder: RunFolder, missing: list[str]) -> dict[str, Any]:
    try:
        return folder.config.as_dict()
    except CheckpointError as error:
        missing.append(f"config.toml: {error}")
        return {}


def _layers(folder: RunFolder, missing: list[str]) -> list[LayerDensity]:
    if not folder.has_checkpoint:
        missing.append("checkpoint: there is none, no step was stored")
        return []
    try:
        found = folder.load()
    except CheckpointError as error:
        missing.append(f"checkpoint: {error}")
        return []
    masks, shapes = found.state.masks, found.layout.prunable_shapes
    return [
        LayerDensity(name, shape, int(np.count_nonzero(masks[name])))
        for name, shape in shapes.items()
        if name in masks
    ]


_MOST_DRAWS = 100_000_000
"""Devices times rounds, of which it is drawn again who took part."""


def _took_part(folder: RunFolder, steps: Sequence[Step]) -> dict[int, int]:
    """Count how often each simulated device was asked: the seed draws the same ones again."""
    try:
        config = folder.config
        rounds = [step["round"] for step in steps if step["round"]]
        traced = config.availability.startswith("trace")  # a file, which somebody else may name
        secret = config.sampling_rate < 1
        if traced or secret or config.devices * len(rounds) > _MOST_DRAWS:
            return {}
        drawn = [order(config, number) for number in rounds]
    except FedkitError:
        return {}
    asked = [each[: config.asked] for each in drawn if each is not None]
    if not asked:
        return {}
    return dict(enumerate(np.bincount(np.concatenate(asked), minlength=config.devices).tolist()))


def _shares(folder: RunFolder, missing: list[str]) -> Shares | None:
    if not (folder.path / SHARES).exists():
        missing.append(f"{SHARES}: there is none; devices of a real fleet keep their data")
        return None
    try:
        found = folder.shares()
    except CheckpointError as error:
        missing.append(f"{SHARES}: {error}")
        return None
    if found.counts.shape != (len(found.devices), len(found.classes)):
        missing.append(f"{SHARES}: its counts do not fit its devices and classes")
        return None
    return found


def _summary(path: Path, missing: list[str]) -> dict[str, Any]:
    found = _json(path / "summary.json")
    if found is None:
        missing.append("summary.json: there is none that is whole; a finished run writes it")
    return found or {}


def _manifests(path: Path) -> dict[str, dict[str, Any]]:
    """Return the manifests beside artifacts and in those that are folders, as they are told."""
    beside = {each.name.removesuffix(".json"): each for each in path.glob("*.json")}
    within = {each.parent.name: each for each in path.glob("*/manifest.json")}
    found = {name: _json(each) for name, each in sorted((beside | within).items())}
    return {name: told for name, told in found.items() if told and "manifest_version" in told}


def _artifacts(
    path: Path, manifests: Mapping[str, Mapping[str, Any]], look: Look, missing: list[str]
) -> dict[str, Sequence[ArtifactLayer]]:
    found = {}
    for name, manifest in manifests.items():
        if manifest.get("target") == "graph":  # what the others are made from
            continue
        try:
            found[name] = look(path / name)
        except FedkitError as error:
            missing.append(f"layers of {name}: {error}")
    return found


def _costs(path: Path) -> list[dict[str, Any]]:
    """Return the rows of what `fedkit bench device --json` wrote into the folder."""
    found = (_json(each) or {} for each in sorted(path.glob("*.json")))
    rows = [row for each in found if each.get("benchmark") == "device" for row in _rows(each)]
    return [{key: row[key] for key in row if _is_plain(row[key])} for row in rows[:_MOST_COSTS]]


_MOST_COSTS = 1_000


def _rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = result.get("rows")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _is_plain(value: object) -> bool:
    return isinstance(value, str) or value is None or is_number(value)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(read_whole(path, _MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _told(path: Path) -> list[dict[str, Any]]:
    told = (e for e in read_events(path) if e["event"] in ("refused", "failed", "quarantined"))
    return list(deque(told, MOST_TOLD))


def _error(path: Path) -> str:
    place = path / "error.txt"
    if not place.is_file():
        return ""
    with place.open("rb") as file:
        return file.read(_MOST_ERROR).decode(errors="replace").strip()
