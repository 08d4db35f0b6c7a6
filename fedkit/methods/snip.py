"""SNIP: prune once, by how much the loss on some data would feel the loss of a weight.

Source: Lee, Ajanthan and Torr, "SNIP: Single-shot network pruning based on connection sensitivity",
2019. The data is the server's own, which is where a federated SNIP has any before training.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.base import Engine
from fedkit.methods.interface import Method, Opening, static
from fedkit.sparse.masks import global_masks
from fedkit.sparse.state import Masks, ModelState
from fedkit.tasks.task import Examples


def saliency(
    engine: Engine, state: ModelState, examples: Examples
) -> dict[str, NDArray[np.float32]]:
    """Return |weight * gradient| of every prunable weight, float32."""
    gradients = engine.gradients(state, examples)
    return {name: np.abs(state.weights[name] * value) for name, value in gradients.items()}


def snip_masks(opening: Opening) -> Masks:
    """Keep the weights of largest saliency on the server's own examples."""
    examples = opening.sample(opening.config.adjust_examples)
    scores = saliency(opening.engine, opening.dense, examples)
    return global_masks(scores, opening.budget, opening.config.exempt_layers)


SNIP = Method("SNIP on the server's data (Lee et al., 2019)", static(snip_masks))
METHODS = {"snip": SNIP}
