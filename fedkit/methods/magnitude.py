"""One-shot magnitude pruning of the dense start, all layers compared with each other."""

from __future__ import annotations

from fedkit.methods.interface import Method, Opening, static
from fedkit.sparse.masks import global_masks
from fedkit.sparse.state import Masks


def magnitude_masks(opening: Opening) -> Masks:
    """Keep the largest weights of the dense start."""
    weights = {name: opening.dense.weights[name] for name in opening.dense.masks}
    return global_masks(weights, opening.budget, opening.config.exempt_layers)


MAGNITUDE = Method("one-shot global magnitude (Han et al., 2015)", static(magnitude_masks))
METHODS = {"magnitude": MAGNITUDE}
