"""Which layers of a model carry what a fleet prunes and merges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers whose weights are pruned."""

BatchNorm = nn.modules.batchnorm._BatchNorm
"""What all batch normalisations derive from, ours too."""

STATISTICS = ("running_mean", "running_var")
"""Buffers of a norm that a fleet merges."""


def prunable_weights(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the prunable parameters, in the model's order."""
    owners = (name for name, module in model.named_modules() if isinstance(module, PRUNABLE))
    own = dict(model.named_parameters())
    names = (f"{name}.weight" if name else "weight" for name in owners)
    return tuple(name for name in names if name in own)


def tracking_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """Return the norms that have running statistics, by name, in the model's order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
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
