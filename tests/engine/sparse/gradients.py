"""Gradients of a program, and of torch in the same branches, and how far apart they are."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkit.engine.ops.pool import Pool
from fedkit.engine.plan.execution import needs_gradient
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse import program as sparse_program
from fedkit.engine.sparse.program import SparseProgram
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples, cross_entropy
from tests.engine.sparse.cases import tensors
from tests.naive import plan as naive

ZERO = 1e-10
"""Share of the model's largest gradient below which a tensor's are 0 but for rounding."""

Floats = NDArray[np.float32]
Gradients = dict[str, NDArray[np.floating[Any]]]


def by_program(
    program: SparseProgram, data: Examples
) -> tuple[float, Gradients, dict[int, Tensor]]:
    """Return the loss, the gradients (0 where pruned), and the read values behind a kink."""
    _, other, taken = _step(searching(program), data)
    loss, own, _ = _step(program, data)
    assert own.tobytes() == other.tobytes()
    network, found = program.network, Gradients()
    for name in network.plan.weights:
        part = network.parameters.part(name, program.gradient)
        found[name] = network.parameters.dense(name, part).copy()
    return loss, found, taken


def _step(program: SparseProgram, data: Examples) -> tuple[float, Floats, dict[int, Tensor]]:
    program.forward(data.inputs, np.arange(len(data)))
    taken = read_values(program)
    loss = program.loss(data.targets)
    program.backward()
    return loss, program.gradient.copy(), taken


def searching(program: SparseProgram) -> SparseProgram:
    """Return a program that looks for maxima again, whose sources it keeps for that."""
    how = program.mode, program.batch, program.threads, program.trained, program.stored_bits
    with mock.patch.object(sparse_program, "keeping_argmax", lambda plan, schedule: schedule):
        return SparseProgram(program.network, *how)


def read_values(program: SparseProgram) -> dict[int, Tensor]:
    """Return the values that activations give and maxima take, if the backward pass reads them."""
    plan, found = program.network.plan, {}
    pooled = {op.source for op in plan.ops if isinstance(op, Pool) and op.operation == "max"}
    for index in needs_gradient(plan):
        if plan.tensors[index].activation != "none" or index in pooled:
            found[index] = torch.from_numpy(program.read(index))
    return found


def by_torch(
    plan: Plan, state: ModelState, data: Examples, taken: dict[int, Tensor], dtype: torch.dtype
) -> tuple[float, Gradients]:
    """Return the loss and the gradients of the kept weights."""
    inputs, targets = tensors(data, dtype)
    weights = {n: torch.tensor(w, dtype=dtype).requires_grad_() for n, w in state.weights.items()}
    stats = {n: torch.tensor(s, dtype=dtype) for n, s in state.stats.items()}
    loss = cross_entropy(naive.run(plan, weights, stats, inputs, True, taken), targets)
    gradients = torch.autograd.grad(loss, list(weights.values()))
    found = {n: g.numpy() for n, g in zip(weights, gradients, strict=True)}
    for name, mask in state.masks.items():
        found[name][~mask] = 0
    return loss.item(), found


def worst(found: Gradients, expected: Gradients) -> tuple[float, str]:
    """Return the largest error of a tensor, relative to its largest gradient, and its name."""
    most = {name: float(np.abs(gradient).max()) for name, gradient in expected.items()}
    whole = max(most.values()) or 1.0
    scales = {name: own if own > ZERO * whole else whole for name, own in most.items()}
    return max((float(np.abs(found[n] - expected[n]).max()) / scales[n], n) for n in expected)
