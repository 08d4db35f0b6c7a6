"""Which layers of a model carry what a fleet prunes and merges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fedkit.nn.norms.registry import Role, rows_in

PRUNABLE = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    nn.Linear,
)
"""Layers whose weights are pruned; beside them `PROJECTIONS`, and those of `RECURRENT`."""

PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Weights that `torch.nn.MultiheadAttention` has itself: one for all three, or one for each."""

RECURRENT = (nn.LSTM, nn.GRU)
"""Layers that go over steps; each of their weights is of all gates."""

GATES = ("weight_ih", "weight_hh", "weight_hr")
"""What the names of their weights begin with: of the input, of the states, of a projection."""

STATISTICS = ("running_mean", "running_var")
"""Buffers of a norm that a fleet merges: its moments."""


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require a gradient, by name, in the model's order.

    What is frozen is a constant of the model, as a buffer is: it is neither pruned nor sent.
    """
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def prunable_weights(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the prunable parameters, in the model's order."""
    own = trainable_parameters(model)
    names = (
        f"{name}.{weight}" if name else weight
        for name, module in model.named_modules()
        for weight in _prunable_of(module)
    )
    return tuple(name for name in names if name in own)


def _prunable_of(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.MultiheadAttention):
        return PROJECTIONS
    if isinstance(module, RECURRENT):
        return tuple(name for name in module._parameters if name.startswith(GATES))
    return ("weight",) if isinstance(module, PRUNABLE) else ()


def untrainable_parts(model: nn.Module) -> Iterator[str]:
    """Yield what no engine can train and prune, by name, with the reason and the way out."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            yield f"{name} is lazy; run the model on an example before you return it"
        elif value.is_floating_point() and value.dtype != torch.float32:
            yield f"{name} is {value.dtype}, not torch.float32; convert the model with .float()"
        elif value.is_complex():
            yield f"{name} is {value.dtype}; only real numbers can be trained"
        elif value.numel() == 0:
            yield f"{name} has shape {tuple(value.shape)}, without any number; leave it out"
    for name, module in model.named_modules():
        if isinstance(module, PRUNABLE) and "weight" not in module._parameters:
            yield (
                f"{name or '(model)'} computes its weight from other parameters "
                "(torch.nn.utils.prune, a parametrization, weight_norm or spectral_norm), so it "
                "cannot be pruned; make it a plain parameter first, with prune.remove, "
                "parametrize.remove_parametrizations, remove_weight_norm or remove_spectral_norm"
            )


def tracking_norms(model: nn.Module) -> dict[str, Any]:
    """Return the norms that have moments, by name, in the model's order."""
    return {
        name: module
        for name, module, row in rows_in(model)
        if row.named("moment") and getattr(module, STATISTICS[0]) is not None
    }


def norm_parameters(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters of all norms, with moments and without.

    A parameter that a class derived from a norm adds is one of them.
    """
    return frozenset(
        f"{name}.{parameter}" if name else parameter
        for name, module, row in rows_in(model)
        for parameter, _ in module.named_parameters(recurse=False)
        if row.roles.get(parameter, "affine") == "affine"
    )


def held_by_norms(model: nn.Module, role: Role) -> dict[str, torch.Tensor]:
    """Return the buffers of a model that have a role, by name."""
    return {
        f"{name}.{buffer}" if name else buffer: value
        for name, module, row in rows_in(model)
        for buffer, value in module.named_buffers(recurse=False)
        if row.roles.get(buffer) == role
    }


@contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Give the modules of a model their modes, training or evaluation, back after a block."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
