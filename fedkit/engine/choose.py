"""Which engine runs a task, and why: in float32 the sparse one where it can, else torch."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import nn

from fedkit.core.errors import EngineError, PlanError
from fedkit.engine import accelerator as accelerators
from fedkit.engine.accelerator import CPU, Accelerator, found_device
from fedkit.engine.base import Engine
from fedkit.engine.ops.registry import check_integer
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.structure import Plan
from fedkit.engine.precision import Precision, describe, plan_engine
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.engine.trial import try_inputs
from fedkit.graph.layouts import RANKS
from fedkit.tasks import losses
from fedkit.tasks.task import Task

Wish = Literal["auto", "torch", "sparse"]
"""An engine by name, or the fastest that can run the task."""


def make_engine(
    task: Task,
    model: str,
    seed: int,
    wish: Wish,
    precision: Precision = "fp32",
    stored_bits: int = 32,
    accelerator: Accelerator = "cpu",
    memory: int | None = None,
) -> tuple[Engine, str]:
    """Return the engine for a task, and a line that says which one it is and why.

    Args:
        task: The task.
        model: Zoo model to use instead of the task's own, or "".
        seed: Seed of the initial weights; they do not depend on the engine.
        wish: What the user asked for.
        precision: What it computes with; integers have an engine of their own.
        stored_bits: In which the sparse engine stores what its backward pass reads again.
        accelerator: Where torch computes. The C engines know the processor alone, so `auto` is
            torch where another one is there.
        memory: Most bytes of a step of the sparse engine; None: what it needs.

    Raises:
        EngineError: The accelerator is not there, or the engine asked for does not know it;
            `sparse` was asked for, but the kernels are missing or the loss is another; integers
            were asked for, and torch or another loss; or torch would have to store few bits.
        PlanError: `sparse` or integers were asked for, but the model has layers that cannot run
            so; all are named.
        TaskError: The model does not take the task's inputs.
    """
    device = found_device(accelerator)
    if device != CPU and (wish == "sparse" or precision != "fp32"):
        if accelerator != "auto":
            raise EngineError(
                f"accelerator is {accelerator!r}, and the C engines ({_asked(wish, precision)}) "
                "know the processor alone; leave accelerator at cpu, or take engine torch"
            )
        device = CPU
    reference = TorchEngine.for_task(task, model, seed, device)
    examples = task.examples("test")
    reference.check_forward(examples.inputs[:2])
    try_inputs(task, reference, examples)
    if precision != "fp32":
        return _integer_equivalent(reference, task, wish, precision)
    if wish == "torch" or device != CPU:
        _check_torch(
            stored_bits, memory, f"torch computes on {device}, as engine or accelerator say"
        )
        return reference, accelerators.describe(device)
    try:
        engine = sparse_equivalent(reference, task, stored_bits, memory)
    except (EngineError, PlanError) as error:
        if wish == "sparse":
            raise
        _check_torch(stored_bits, memory, f"the sparse engine cannot run this: {error}")
        return reference, f"torch; the sparse engine cannot run this: {error}"
    return engine, describe(engine)


def _check_torch(bits: int, memory: int | None, why: str) -> None:
    if memory is not None:
        raise EngineError(
            f"memory is {memory} bytes, and torch takes what it needs; {why}. Leave engine at "
            "auto, or memory empty"
        )
    if bits < 32:
        raise EngineError(
            f"stored_bits is {bits}, and torch stores 32; {why}. Leave engine at auto, or set "
            "stored_bits to 32 (--stored-bits 32)"
        )


def _asked(wish: Wish, precision: Precision) -> str:
    return f"engine {wish}" if precision == "fp32" else f"precision {precision}"


def sparse_equivalent(
    reference: TorchEngine, task: Task, stored_bits: int = 32, memory: int | None = None
) -> SparseEngine:
    """Return the sparse engine of the same model with the same initial weights.

    Raises:
        EngineError: The kernels are missing, or the task's loss is its own.
        PlanError: The model has layers that the sparse engine does not know; all are named.
    """
    initial = reference.initial_state()
    plan = task_plan(task, reference.module(initial))
    return SparseEngine(plan, initial, stored_bits=stored_bits, memory=memory)


def task_plan(task: Task, model: nn.Module) -> Plan:
    """Return the plan by which a model is trained for a task.

    Raises:
        EngineError: The task's loss is its own, or its inputs are such that no plan takes.
        PlanError: The model has layers that a plan does not know; all are named.
    """
    loss = task.known_loss
    if loss is None:
        raise EngineError(
            f"the loss of task {task.name!r} is its own; the C engines have those of "
            f"fedkit.tasks.losses ({', '.join(losses.LOSSES)}), other losses need --engine torch"
        )
    inputs = task.examples("test").inputs
    tokens = inputs.dtype == np.int64 and inputs.ndim == 2
    if not tokens and (inputs.dtype != np.float32 or inputs.ndim not in RANKS):
        raise EngineError(
            f"inputs are {inputs.dtype} of shape {inputs.shape[1:]}; the sparse engine takes "
            "float32 of shape (channels, height, width), (channels, length) or (features,), and "
            "int64 of shape (tokens,); others need --engine torch"
        )
    return capture(model, inputs.shape[1:], loss, tokens=tokens)


def _integer_equivalent(
    reference: TorchEngine, task: Task, wish: Wish, precision: Precision
) -> tuple[Engine, str]:
    if wish == "torch":
        raise EngineError(
            f"precision is {precision!r}, but engine 'torch' computes in float32 only; leave "
            "engine at auto, or set precision to fp32 (--precision fp32)"
        )
    initial = reference.initial_state()
    try:
        plan = task_plan(task, reference.module(initial))
        check_integer(plan)
    except (EngineError, PlanError) as error:
        raise type(error)(
            f"precision is {precision!r}, and integers cannot run this: {error} with "
            "--precision fp32"
        ) from error
    engine = plan_engine(plan, precision, initial, "native" if wish == "sparse" else "")
    return engine, describe(engine)
