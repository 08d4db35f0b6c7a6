"""Statistics of norms over pooled examples, in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkit.nn.norm import L1BatchNorm2d
from fedkit.sparse.state import Weights
from fedkit.tasks.task import Examples


def pooled(model: nn.Module, shares: list[Examples]) -> dict[str, tuple[Any, Any]]:
    """Mean and spread of each norm's inputs in ONE training-mode pass over all data, float64."""
    found: dict[str, tuple[Any, Any]] = {}

    def look(name: str, l1: bool) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].transpose(0, 1).flatten(1)
            mean = x.mean(1)
            absolute = (x - mean[:, None]).abs().mean(1) * math.sqrt(math.pi / 2)
            found[name] = mean.numpy(), (absolute**2 if l1 else x.var(1, unbiased=False)).numpy()

        return hook

    model = model.double().train()
    for name, norm in model.named_modules():
        if isinstance(norm, nn.BatchNorm2d | L1BatchNorm2d):
            norm.register_forward_pre_hook(look(name, isinstance(norm, L1BatchNorm2d)))
    with torch.no_grad():
        model(torch.from_numpy(np.concatenate([share.inputs for share in shares])).double())
    return found


def errors(stats: Weights, right: dict[str, tuple[Any, Any]]) -> dict[str, float]:
    """The larger error of each norm's mean and deviation, in deviations."""
    found = {}
    for name, (mean, variance) in right.items():
        deviation = np.sqrt(variance)
        off = np.abs(stats[f"{name}.running_mean"] - mean) / deviation
        scale = np.abs(np.sqrt(stats[f"{name}.running_var"]) / deviation - 1)
        found[name] = float(max(off.max(), scale.max()))
    return found
