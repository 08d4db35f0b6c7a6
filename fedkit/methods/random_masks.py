"""Static random masks, of uniform or Erdos-Renyi-kernel layer densities."""

from __future__ import annotations

from fedkit.methods.interface import Method, Opening, static
from fedkit.sparse.distribution import DISTRIBUTIONS, kept_counts
from fedkit.sparse.masks import layer_masks
from fedkit.sparse.state import Masks


def _random(distribution: str, opening: Opening) -> Masks:
    shapes, config, rng = opening.engine.layout.prunable_shapes, opening.config, opening.rng
    relative = DISTRIBUTIONS[distribution](shapes)
    counts = kept_counts(shapes, config.density, relative, config.exempt_layers)
    return layer_masks({name: rng.random(shape) for name, shape in shapes.items()}, counts)


def random_masks(opening: Opening) -> Masks:
    """Keep random weights, the same share of every layer."""
    return _random("uniform", opening)


def erk_masks(opening: Opening) -> Masks:
    """Keep random weights, a larger share of small layers (Evci et al., 2020)."""
    return _random("erk", opening)


RANDOM = Method("random static mask, uniform layer densities", static(random_masks))
ERK = Method("random static mask, ERK layer densities (Evci et al., 2020)", static(erk_masks))
METHODS = {"random": RANDOM, "erk": ERK}
