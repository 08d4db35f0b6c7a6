"""What the process of a device takes: messages of a run, replayed to a device of its own.

A run's messages are recorded as they reach one device, with what the device remembered before each.
A fresh process, which holds nothing but that device, answers them for real; its peak of memory is
the device's, whatever else the run's own process held.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedkit.bench.process import run_json
from fedkit.bench.replay_child import __file__ as _CHILD
from fedkit.config import RunConfig
from fedkit.device.round import Memory
from fedkit.engine.base import Engine
from fedkit.engine.plan.plan import save_plan
from fedkit.engine.planned import PlannedEngine
from fedkit.methods.interface import Phase
from fedkit.methods.schedule import adjusts_in
from fedkit.tasks.task import Examples
from fedkit.wire.messages import Packet


@dataclass(frozen=True)
class Recorded:
    """One message to one device, and what the device remembered when it came."""

    phase: Phase
    request: Packet
    memory: Memory


def worth_replaying(config: RunConfig) -> Callable[[Phase, Packet], bool]:
    """Return what tells the messages of a run that differ in cost from those it told before.

    These are all messages before training, the first round, and the first one with an adjustment.
    """
    first = next((n for n in range(1, config.rounds + 1) if adjusts_in(config, n)), 1)

    def worth(phase: Phase, request: Packet) -> bool:
        return phase != "train" or request.numbers["round"] in (1, first)

    return worth


def device_memory(
    engine: Engine, config: RunConfig, examples: Examples, messages: Iterable[Recorded]
) -> dict[str, int]:
    """Replay messages to device 0 in a process of its own.

    Args:
        engine: What the device computes with; of one with a plan that goes along, and the
            process imports no torch.
        config: The run.
        examples: The device's data.
        messages: What to replay, in order.

    Returns:
        `idle_bytes`: the process with its imports, data and engine, before the first message;
        `peak_bytes`: its peak over all messages.

    Raises:
        subprocess.CalledProcessError: The process failed, or this is not Linux.
    """
    with tempfile.TemporaryDirectory(prefix="fedkit-replay-") as name:
        save_messages(Path(name), engine, config, examples, messages)
        measured = run_json("-P", str(_CHILD), name)
    return {key: int(measured[key]) for key in ("idle_bytes", "peak_bytes")}


def save_messages(
    folder: Path,
    engine: Engine,
    config: RunConfig,
    examples: Examples,
    messages: Iterable[Recorded],
) -> None:
    """Write what `fedkit.bench.replay_child` answers; see `device_memory`."""
    if isinstance(engine, PlannedEngine):
        save_plan(engine.plan, folder / "model.plan")
    np.savez(folder / "data.npz", inputs=examples.inputs, targets=examples.targets)
    with (folder / "messages.pickle").open("wb") as file:
        for content in (config, *messages):
            pickle.dump(content, file)
