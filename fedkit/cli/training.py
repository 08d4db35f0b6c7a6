"""From a run to a trainer for microcontrollers: `fedkit export RUN --target c99-train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedkit.core.errors import ConfigError
from fedkit.engine.choose import task_plan
from fedkit.server.checkpoint import RunFolder
from fedkit.trainer.on_disk import ENDING, save_trainer
from sim.scenario import make_scenario

TARGET = "c99-train"


def is_asked(targets: Sequence[str]) -> bool:
    """Say whether a trainer is what is to be made.

    Raises:
        ConfigError: Integer artifacts are, too.
    """
    if TARGET in targets and len(targets) > 1:
        raise ConfigError(
            f"target is {','.join(targets)!r}; {TARGET} trains in float32 and is made by itself, "
            "so give two commands"
        )
    return TARGET in targets


def export_run(
    path: Path, batch: int, stored_bits: int | None, ram: int | None, log: Console
) -> dict[str, Any]:
    """Write the trainer of a run's last checkpoint into its folder.

    Args:
        path: The run's folder.
        batch: Examples of a step.
        stored_bits: Of what the backward pass reads again; None: as the run stored them.
        ram: Most bytes of memory beside the stack; None: whatever it needs.
        log: Where progress goes.

    Raises:
        ExportError: The model cannot be trained so, or in so little memory; or it is there already.
    """
    folder = RunFolder.open(path)
    scenario, state = make_scenario(folder.config), folder.load().state
    with log.status("exporting"):
        plan = task_plan(scenario.task, scenario.module(state))
        made = save_trainer(
            path / f"model{ENDING}",
            plan,
            state.masks,
            batch,
            folder.config.stored_bits if stored_bits is None else stored_bits,
            ram,
        )
    return {
        "run": str(path),
        "artifact": str(made.path),
        "target": TARGET,
        "density": state.density,
        "batch": made.batch,
        "stored_bits": made.stored_bits,
        "ram_bytes": made.arena_bytes,
        "values": made.values,
        "source_bytes": made.source_bytes,
    }
