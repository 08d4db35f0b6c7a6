"""Programs whose memory can be looked into: every tensor lies by itself, between guards."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.kernels import native, network
from fedkit.engine.kernels.network import Network
from fedkit.engine.plan import geometry
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.execution import Key, Schedule, overwriting, place, touched
from fedkit.engine.plan.execution import Step as ScheduleStep
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse import program
from fedkit.engine.sparse.float_op import Mode
from fedkit.engine.sparse.program import SparseProgram
from tests.engine.plan.plans import PlanCase

Array = NDArray[Any]

GAP = 16
"""Floats before and behind each tensor."""

GUARD = np.uint32(0x7FC0FEED)
"""Bits of the NaN that fills memory before a program runs."""


def apart(
    plan: Plan,
    schedule: Schedule,
    size: Callable[[Key], int],
    touched: Callable[[Plan, ScheduleStep], Sequence[Key]] = touched,
    gap: int = GAP,
) -> tuple[dict[Key, int], int]:
    """Place as `schedule.place` does, but so that no two tensors share bytes at different times."""
    keys, _ = place(plan, schedule, size, touched)
    offsets: dict[Key, int] = {}
    end = gap
    for owner in dict.fromkeys(schedule.storage(key) for key in keys):
        offsets[owner] = end
        end += size(owner) + gap
    return {key: offsets[schedule.storage(key)] for key in keys}, end


@contextmanager
def choices_of(case: PlanCase) -> Iterator[None]:
    """Let layers be made with a case's bounds."""
    network._geometry.cache_clear()
    with (
        mock.patch.object(network, "DENSE_ABOVE", case.dense_above),
        mock.patch.object(geometry, "_PART_TILES", case.part_tiles),
    ):
        yield
    network._geometry.cache_clear()


def make(
    case: PlanCase,
    kernels: native.Kernels,
    mode: Mode = "train",
    batch: int = 0,
    threads: int = 1,
    placing: Any = apart,
    stored_bits: int = 32,
) -> SparseProgram:
    """Return a program for a case, with its weights, its memory full of NaN.

    Where tensors lie apart, none is written over another.
    """
    writing_over = _nowhere if placing is apart else overwriting
    with (
        choices_of(case),
        mock.patch.object(program, "place", placing),
        mock.patch.object(program, "overwriting", writing_over),
    ):
        net = Network(case.plan, case.state.masks, kernels)
        most = batch or len(case.inputs)
        made = SparseProgram(net, mode, most, threads, stored_bits=stored_bits)
    net.load(case.state)
    fill(made)
    return made


def _nowhere(plan: Plan, schedule: Schedule, able: Container[int]) -> Schedule:
    """Stand in for `overwriting`."""
    return schedule


def fill(made: SparseProgram) -> None:
    """Fill the memory of a program with NaN."""
    made._arena.view(np.uint32)[:] = GUARD
    made._sums[:] = made.gradient[:] = np.nan
    for partial in made.partial:
        partial[:] = np.nan
    for norm in made.network.norms.values():
        for value in vars(norm).values():
            if isinstance(value, np.ndarray):
                value[:] = np.nan
    made.transposed[:] = np.nan


def lanes(made: SparseProgram, kind: str, tensor: int) -> NDArray[np.float32]:
    """Return the view [tiles, c, h, w, lanes] of a tensor's values "x" or gradient "g"."""
    return made.lanes(kind, tensor)


def memory(made: SparseProgram, kind: str, tensor: int) -> Array:
    """Return the words of memory that a tensor's "x", "g" or "argmax" takes for this batch."""
    values = made.tiles * made.kernels.lanes * math.prod(made.plan.tensors[tensor].shape)
    begin = made._places[kind, tensor]
    return made._arena[begin : begin + values // (4 if kind == "argmax" else 1)]


def examples(made: SparseProgram, kind: str, tensor: int) -> NDArray[np.float32]:
    """Return a copy [n, c, h, w] of a tensor's values "x" or gradient "g"."""
    found = np.moveaxis(lanes(made, kind, tensor), -1, 1)
    return found.reshape(-1, *found.shape[2:])[: made._examples].copy()


def guards_hold(made: SparseProgram) -> bool:
    """Say whether nothing was written between the tensors."""
    free = np.ones(made._tensor_floats, bool)
    for key, begin in made._places.items():
        free[begin : begin + memory(made, *key).size] = False
    return bool((made._arena[: len(free)].view(np.uint32)[free] == GUARD).all())


@dataclass
class StepResult:
    """What one step of training computed, as `naive.kernels.Run` has it.

    Attributes:
        raw: Values per tensor.
        outputs: Logits.
        loss: Mean cross-entropy.
        finished: Gradient per tensor that has one, when it was finished.
        gradients: Per parameter; of a pruned layer those of the kept weights.
        full: Gradients of all weights of each convolution, by its weight's name.
    """

    raw: list[Array]
    outputs: Array
    loss: float = 0.0
    finished: dict[int, Array] = field(default_factory=dict)
    gradients: dict[str, Array] = field(default_factory=dict)
    full: dict[str, Array] = field(default_factory=dict)

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Yield everything that was computed."""
        yield "loss", np.array(self.loss)
        yield "outputs", self.outputs
        for kind in ("finished", "gradients", "full"):
            for name, value in getattr(self, kind).items():
                yield f"{kind} {name}", value


def step(
    made: SparseProgram, inputs: NDArray[np.float32], targets: NDArray[np.int64]
) -> StepResult:
    """Run examples forward and backward."""
    rows = 1 + len(inputs) % 6  # of full gradients at a time
    made.forward(inputs, np.arange(len(inputs)))
    done = forward_values(made)
    done.loss = made.loss(targets)

    def look(number: int) -> None:
        op = made.plan.ops[number]
        if op.target not in done.finished:
            done.finished[op.target] = examples(made, "g", op.target)
        if isinstance(op, Conv) and op.weight not in done.full:
            parts = [part.copy() for part in made.full_gradient(number, rows)]
            done.full[op.weight] = np.concatenate(parts)

    made.backward(before=look)
    parameters = made.network.parameters
    for name in made.plan.weights:
        done.gradients[name] = parameters.part(name, made.gradient).copy()
    return done


def forward_values(made: SparseProgram) -> StepResult:
    """Return what the forward pass left."""
    count = len(made.plan.tensors)
    return StepResult([examples(made, "x", tensor) for tensor in range(count)], made.outputs())


def address(array: Array) -> ctypes.c_void_p:
    """Return an array's address as an argument of a kernel."""
    return ctypes.c_void_p(array.ctypes.data)
