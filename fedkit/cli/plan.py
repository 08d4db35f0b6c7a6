"""Writing the plan of a task's model, for devices that train without torch."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from rich.table import Table

from fedkit.core.errors import PlanError
from fedkit.engine.choose import task_plan
from fedkit.engine.plan.plan import save_plan
from fedkit.engine.torch import TorchEngine
from fedkit.engine.trial import try_inputs
from fedkit.tasks import load_task


def write_plan(path: Path, task: str, model: str) -> dict[str, Any]:
    """Capture a task's model (or the zoo model `model`) and write its plan.

    Raises:
        PlanError: The file exists, cannot be written, or the model has layers that the sparse
            engine does not know; all are named.
        EngineError: The task's loss is its own.
        TaskError: There is no such task, or its model does not take its inputs.
    """
    if os.path.lexists(path):  # a link that leads nowhere is something too
        raise PlanError(f"{path} exists; give another path, or remove it first")
    found = load_task(task)
    test = found.examples("test")
    engine = TorchEngine.for_task(found, model, seed=0)
    try_inputs(found, engine, test)
    plan = task_plan(found, engine.module(engine.initial_state()))
    save_plan(plan, path)
    return {
        "plan": str(path),
        "task": task,
        "ops": len(plan.ops),
        "weights": sum(math.prod(shape) for shape in plan.weights.values()),
        "file_bytes": path.stat().st_size,
    }


def plan_table(written: dict[str, Any]) -> Table:
    """Render what was written."""
    table = Table(show_header=False)
    for key, value in written.items():
        table.add_row(key.replace("_", " "), f"{value:,}" if isinstance(value, int) else value)
    return table
