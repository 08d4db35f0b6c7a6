"""SynFlow: prune without data, keeping the flow of synaptic strength alive in every layer.

Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic
flow", 2020. The score of a weight is |w * dR/dw|, where R is the sum of the outputs that an image
of ones gives in the network of absolute weights; 100 rounds of pruning reach the density
exponentially. Needs torch, on the server only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedkit.methods.interface import Method, Opening, static
from fedkit.sparse.masks import global_masks, kept_first
from fedkit.sparse.state import Masks, ModelState

if TYPE_CHECKING:
    from torch import nn

STEPS = 100
"""Rounds of pruning; the paper's."""


def synflow_masks(opening: Opening) -> Masks:
    """Keep the weights of largest synaptic flow."""
    state, exempt, budget = opening.dense, opening.config.exempt_layers, opening.budget
    module = opening.module(state)
    total = sum(mask.size for mask in state.masks.values())
    for step in range(1, STEPS + 1):
        kept = _kept_after(step, budget, total)
        scores = kept_first(flow(module, state, opening.input_shape), state.masks)
        state = state.with_masks(global_masks(scores, kept, exempt))
    return state.masks


def _kept_after(step: int, budget: int, total: int) -> int:
    """Return what is kept after a step: exponentially less, from all to the budget."""
    return max(budget, round(total * math.pow(budget / total, step / STEPS)))


def flow(
    module: nn.Module, state: ModelState, input_shape: tuple[int, ...]
) -> dict[str, NDArray[np.float64]]:
    """Return |w * dR/dw| of every prunable weight, float64.

    Args:
        module: The model in evaluation mode; what it holds does not matter.
        state: What it computes with.
        input_shape: Shape of one example.
    """
    import torch

    from fedkit.engine.torch import one_thread

    values = {name: torch.from_numpy(v) for name, v in {**state.weights, **state.stats}.items()}
    # What is frozen, and buffers of any other kind, are what the module holds.
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    absolute = {
        name: values.get(name, value.detach()).abs().double()
        for name, value in held.items()
        if value.is_floating_point()
    }
    weights = [absolute[name].requires_grad_() for name in state.masks]
    ones = torch.ones(1, *input_shape, dtype=torch.float64)
    with one_thread(), _unbounded(module):
        outputs = torch.func.functional_call(module, absolute, ones)
        gradients = torch.autograd.grad(outputs.sum(), weights)
    return {
        name: (weight * gradient).detach().numpy()
        for name, weight, gradient in zip(state.masks, weights, gradients, strict=True)
    }


@contextmanager
def _unbounded(module: nn.Module) -> Iterator[None]:
    """Take the bound from activations such as ReLU6, which so large a flow never gets through."""
    from torch import nn

    bounded = [part for part in module.modules() if isinstance(part, nn.Hardtanh)]
    bounds = [part.max_val for part in bounded]
    try:
        for part in bounded:
            part.max_val = math.inf
        yield
    finally:
        for part, bound in zip(bounded, bounds, strict=True):
            part.max_val = bound


SYNFLOW = Method("SynFlow, 100 rounds (Tanaka et al., 2020)", static(synflow_masks))
METHODS = {"synflow": SYNFLOW}
