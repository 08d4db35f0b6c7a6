"""SynFlow: prune without data, keeping the flow of synaptic strength alive in every layer.

Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic
flow", 2020. The score of a weight is |w * dR/dw|, where R is the sum of the outputs that an image
of ones gives in the network of absolute weights; 100 rounds of pruning reach the density
exponentially. Needs torch, on the server only.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedkit.method import Method, Opening, static
from fedkit.sparse.masks import global_masks
from fedkit.sparse.state import Masks, ModelState

STEPS = 100
"""Rounds of pruning; the paper's."""

_LEAST = 1e-300  # Puts a kept weight that carries no flow before every pruned one.


def synflow_masks(opening: Opening) -> Masks:
    """Keep the weights of largest synaptic flow."""
    state, config = opening.dense, opening.config
    total = sum(mask.size for mask in state.masks.values())
    for step in range(1, STEPS + 1):
        kept = _kept_after(step, opening.budget, total)
        state = state.with_masks(global_masks(_flow(opening, state), kept, config.exempt_layers))
    return state.masks


def _kept_after(step: int, budget: int, total: int) -> int:
    """Return what is kept after a step: exponentially less, from all to the budget."""
    return max(budget, round(total * math.pow(budget / total, step / STEPS)))


def _flow(opening: Opening, state: ModelState) -> dict[str, NDArray[np.float64]]:
    """Score every prunable weight, float64; a pruned one scores less than any kept one."""
    import torch

    module = opening.module(_absolute(state)).double()
    weights = {name: dict(module.named_parameters())[name] for name in state.masks}
    ones = torch.ones(1, *opening.input_shape, dtype=torch.float64)
    gradients = torch.autograd.grad(module(ones).sum(), list(weights.values()))
    scores = zip(weights.values(), gradients, state.masks.values(), strict=True)
    return {
        name: (weight * gradient).detach().numpy() + _LEAST * mask
        for name, (weight, gradient, mask) in zip(weights, scores, strict=True)
    }


def _absolute(state: ModelState) -> ModelState:
    weights = {name: np.abs(value) for name, value in state.weights.items()}
    stats = {name: np.abs(value) for name, value in state.stats.items()}
    return ModelState(weights, stats, state.masks)


SYNFLOW = Method("SynFlow, 100 rounds (Tanaka et al., 2020)", static(synflow_masks))
