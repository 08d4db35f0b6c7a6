"""How much is kept in each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedkit.errors import ConfigError
from fedkit.sparse.state import Shapes


def uniform(shapes: Shapes) -> dict[str, float]:
    """Return the same relative density for every layer."""
    return dict.fromkeys(shapes, 1.0)


def erk(shapes: Shapes) -> dict[str, float]:
    """Return relative densities by the Erdos-Renyi-kernel rule: sum of dims / product of dims.

    Small layers are kept denser than large ones (Evci et al., "Rigging the Lottery", 2020).
    """
    return {name: sum(shape) / float(np.prod(shape)) for name, shape in shapes.items()}


DISTRIBUTIONS = {"uniform": uniform, "erk": erk}


def with_noise(
    relative: Mapping[str, float], noise: float, rng: np.random.Generator
) -> dict[str, float]:
    """Multiply each relative density by a factor drawn uniformly from [1 - noise, 1 + noise]."""
    factors = rng.uniform(1 - noise, 1 + noise, len(relative))
    return {
        name: value * float(f) for (name, value), f in zip(relative.items(), factors, strict=True)
    }


def exempt_layers(names: Sequence[str], exempt: Sequence[str]) -> set[str]:
    """Return the layers that stay dense: `first`, `last` or parameter names.

    Raises:
        ConfigError: An entry names no prunable layer.
    """
    aliases = {"first": names[0], "last": names[-1]}
    chosen = {aliases.get(entry, entry) for entry in exempt}
    if unknown := chosen - set(names):
        raise ConfigError(
            f"exempt names unknown layers {sorted(unknown)}; allowed: first, last, "
            f"{', '.join(names)}"
        )
    return chosen


def kept_counts(
    shapes: Shapes, density: float, relative: Mapping[str, float], exempt: Sequence[str] = ()
) -> dict[str, int]:
    """Share out floor(density * total) kept weights over the layers.

    Layers get weights in proportion to relative density x size; a layer that would exceed its
    size is kept whole and the rest is rescaled. Every layer keeps at least one weight. Exempt
    layers are kept whole and count in the total, so an exemption never hides weights.

    Args:
        shapes: Prunable layers.
        density: Kept share of all prunable weights, in (0, 1].
        relative: Relative density per layer, > 0.
        exempt: Layers kept whole, as in `exempt_layers`.

    Returns:
        Kept weights per layer; their sum is exactly floor(density * total).

    Raises:
        ConfigError: The budget cannot hold the exempt layers and one weight in every other one.
    """
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    budget = int(density * sum(sizes.values()) + 1e-9)
    whole = exempt_layers(list(shapes), exempt)
    needed = sum(sizes[name] if name in whole else 1 for name in sizes)
    if budget < needed:
        raise ConfigError(
            f"density {density} keeps {budget} of {sum(sizes.values())} weights, but the exempt "
            f"layers and one weight in each other layer need {needed}; raise density or exempt less"
        )
    free = [name for name in sizes if name not in whole]
    budget -= sum(sizes[name] for name in whole)
    shares = _proportional(
        np.array([sizes[name] for name in free]), np.array([relative[n] for n in free]), budget
    )
    counts = dict(zip(free, shares.tolist(), strict=True))
    return {name: counts.get(name, size) for name, size in sizes.items()}


def _proportional(
    sizes: NDArray[np.int64], relative: NDArray[np.float64], budget: int
) -> NDArray[np.int64]:
    """Split `budget` by clip(scale * relative * size, 1, size), the scale found by bisection."""
    low, high = 0.0, 1.0 / float(relative.min()) if len(relative) else 0.0
    for _ in range(100):
        scale = (low + high) / 2
        if np.clip(scale * relative * sizes, 1, sizes).sum() > budget:
            high = scale
        else:
            low = scale
    ideal = np.clip(low * relative * sizes, 1, sizes)
    counts: NDArray[np.int64] = np.floor(ideal + 1e-9).astype(np.int64)
    # What flooring left over goes to the largest remainders; the lower layer wins a tie.
    spare = np.where(counts < sizes, ideal - counts, -np.inf)
    order = np.argsort(-spare, kind="stable")
    for layer in np.resize(order, max(0, 2 * len(order))):
        if counts.sum() >= budget:
            break
        counts[layer] += counts[layer] < sizes[layer]
    return counts
