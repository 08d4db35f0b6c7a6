"""Which engine runs a task: the sparse one where it can, else torch, and why."""

from __future__ import annotations

from typing import Literal

from fedkit.engine.base import Engine
from fedkit.engine.sparse.capture import capture
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.errors import EngineError, PlanError
from fedkit.task import Task, cross_entropy

Wish = Literal["auto", "torch", "sparse"]
"""An engine by name, or the fastest that can run the task."""


def make_engine(task: Task, model: str, seed: int, wish: Wish) -> tuple[Engine, str]:
    """Return the engine for a task, and a line that says which one it is and why.

    Args:
        task: The task.
        model: Zoo model to use instead of the task's own, or "".
        seed: Seed of the initial weights; they do not depend on the engine.
        wish: What the user asked for.

    Raises:
        EngineError: `sparse` was asked for, but the kernels are missing or the loss is another.
        PlanError: `sparse` was asked for, but it cannot run the model.
    """
    reference = TorchEngine.for_task(task, model, seed)
    if wish == "torch":
        return reference, "torch"
    try:
        engine = sparse_twin(reference, task)
    except (EngineError, PlanError) as error:
        if wish == "sparse":
            raise
        return reference, f"torch; the sparse engine cannot run this: {error}"
    return engine, f"sparse ({engine.kernels.simd})"


def sparse_twin(reference: TorchEngine, task: Task) -> SparseEngine:
    """Return the sparse engine of the same model with the same initial weights.

    Raises:
        EngineError: The kernels are missing, or the task's loss is not `cross_entropy`.
        PlanError: The model has layers that the sparse engine does not know; all are named.
    """
    if task.loss is not cross_entropy:
        raise EngineError(
            f"the loss of task {task.name!r} is its own; the sparse engine has "
            "fedkit.task.cross_entropy, other losses need --engine torch"
        )
    initial = reference.initial_state()
    plan = capture(reference.module(initial), task.test_data().inputs.shape[1:])
    return SparseEngine(plan, initial)
