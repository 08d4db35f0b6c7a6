"""The candidate pool: one dense model, several sparse models of equal overall density."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedkit.sparse.counts import exact
from fedkit.sparse.distribution import DISTRIBUTIONS, kept_counts, with_noise
from fedkit.sparse.masks import layer_masks
from fedkit.sparse.state import ModelState


def pool_size(density: float) -> int:
    """Return the default number of candidates: 0.1 / density, at least 3.

    0.1 / density is FedTiny's rule (the pool then costs a tenth of a dense download). Above 5 %
    density it would leave next to nothing to select from, hence the floor.
    """
    return max(3, round(Fraction(1, 10) / exact(density)))


@dataclass(frozen=True)
class CandidatePool:
    """Candidates pruned by magnitude from one dense model.

    Within a layer such candidates are nested: each keeps the largest weights, only how many
    differs. The union of all candidates and the counts therefore describe the whole pool, and that
    is all a device has to download.

    Attributes:
        union: The dense model reduced to what any candidate keeps.
        counts: int32 [candidates, layers], kept weights per candidate and prunable layer.
    """

    union: ModelState
    counts: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.counts)

    def candidate(self, index: int) -> ModelState:
        """Return candidate `index` as a model of its own."""
        counts = dict(zip(self.union.masks, self.counts[index].tolist(), strict=True))
        return self.union.with_masks(layer_masks(self.union.weights, counts))


Prune = Callable[[ModelState, Mapping[str, int]], ModelState]
"""Brings a dense model down to some kept weights per layer."""


def prune_at_once(dense: ModelState, counts: Mapping[str, int]) -> ModelState:
    """Keep the largest `counts[layer]` weights of each layer."""
    return dense.with_masks(layer_masks(dense.weights, counts))


def candidate_pool(
    dense: ModelState,
    *,
    prune: Prune = prune_at_once,
    density: float,
    size: int,
    noise: float,
    distribution: str,
    exempt: Sequence[str],
    seed: int,
) -> CandidatePool:
    """Prune a dense model by magnitude into `size` candidates.

    Each candidate draws its layer densities with noise around the distribution, rescaled to the
    same number of kept weights; the first one draws none, so that the pool always holds the plain
    choice.

    Args:
        dense: The start; its masks name the prunable layers.
        prune: Makes the union of all candidates from the dense start and its kept weights per
            layer; candidates are the largest weights of that.
        density: Kept share of all prunable weights, in (0, 1].
        size: Number of candidates, >= 1.
        noise: Relative half-width of the layer-density noise, in [0, 1).
        distribution: A key of `fedkit.sparse.distribution.DISTRIBUTIONS`.
        exempt: Layers that stay dense.
        seed: Seed of the noise.

    Returns:
        Candidates that all keep exactly floor(density * total) prunable weights.
    """
    shapes = {name: mask.shape for name, mask in dense.masks.items()}
    relative = DISTRIBUTIONS[distribution](shapes)
    rng = np.random.default_rng([seed, 1])
    counts = []
    for index in range(size):
        drawn = with_noise(relative, noise if index else 0.0, rng)
        counts.append(list(kept_counts(shapes, density, drawn, exempt).values()))
    table = np.array(counts, np.int32)
    widest = dict(zip(shapes, table.max(axis=0).tolist(), strict=True))
    return CandidatePool(prune(dense, widest), table)
