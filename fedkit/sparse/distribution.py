"""How much is kept in each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from fedkit.core.errors import ConfigError
from fedkit.sparse.counts import floor_share
from fedkit.sparse.state import Shapes


def uniform(shapes: Shapes) -> dict[str, Fraction]:
    """Return the same relative density for every layer."""
    return dict.fromkeys(shapes, Fraction(1))


def erk(shapes: Shapes) -> dict[str, Fraction]:
    """Return relative densities by the Erdos-Renyi-kernel rule: sum of dims / product of dims.

    Small layers are kept denser than large ones (Evci et al., "Rigging the Lottery", 2020).
    """
    return {name: Fraction(sum(shape), math.prod(shape)) for name, shape in shapes.items()}


DISTRIBUTIONS = {"uniform": uniform, "erk": erk}


def with_noise(
    relative: Mapping[str, Fraction], noise: float, rng: np.random.Generator
) -> dict[str, Fraction]:
    """Multiply each relative density by a factor drawn uniformly from [1 - noise, 1 + noise]."""
    factors = rng.uniform(1 - noise, 1 + noise, len(relative))
    return {
        name: value * Fraction(float(factor))
        for (name, value), factor in zip(relative.items(), factors, strict=True)
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
    shapes: Shapes, density: float, relative: Mapping[str, Fraction], exempt: Sequence[str] = ()
) -> dict[str, int]:
    """Share out floor(density * total) kept weights over the layers.

    Layers get weights in proportion to relative density x size; a layer that would exceed its
    size is kept whole and the rest is rescaled. Every layer keeps at least one weight. Exempt
    layers are kept whole and count in the total, so an exemption never hides weights.

    Args:
        shapes: Prunable layers.
        density: Kept share of all prunable weights, in (0, 1]; see `counts.exact`.
        relative: Relative density per layer, > 0.
        exempt: Layers kept whole, as in `exempt_layers`.

    Returns:
        Kept weights per layer; their sum is exactly floor(density * total).

    Raises:
        ConfigError: The budget cannot hold the exempt layers and one weight in every other one.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    budget = floor_share(density, sum(sizes.values()))
    whole = exempt_layers(list(shapes), exempt)
    needed = sum(sizes[name] if name in whole else 1 for name in sizes)
    if budget < needed:
        raise ConfigError(
            f"density {density} keeps {budget} of {sum(sizes.values())} weights, but the exempt "
            f"layers and one weight in each other layer need {needed}; raise density or exempt less"
        )
    free = [name for name in sizes if name not in whole]
    budget -= sum(sizes[name] for name in whole)
    shares = _proportional([sizes[n] for n in free], [Fraction(relative[n]) for n in free], budget)
    counts = dict(zip(free, shares, strict=True))
    return {name: counts.get(name, size) for name, size in sizes.items()}


def _proportional(sizes: Sequence[int], relative: Sequence[Fraction], budget: int) -> list[int]:
    """Split `budget` by clip(scale * relative * size, 1, size), whose sum is the budget.

    What flooring leaves over goes to the largest remainders; the lower layer wins a tie.
    """
    wanted = [share * size for share, size in zip(relative, sizes, strict=True)]
    scale = _scale(wanted, sizes, budget)
    ideal = [
        min(max(scale * w, Fraction(1)), Fraction(n)) for w, n in zip(wanted, sizes, strict=True)
    ]
    counts = [math.floor(value) for value in ideal]
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - ideal[i])
    for layer in by_remainder[: budget - sum(counts)]:
        counts[layer] += 1
    return counts


def _scale(wanted: Sequence[Fraction], sizes: Sequence[int], budget: int) -> Fraction:
    """Return the least scale at which the clipped layers hold the budget, exactly.

    Their sum grows with the scale along straight lines, which meet where a layer reaches 1 or its
    size.
    """
    total, slope, scale = Fraction(len(sizes)), Fraction(0), Fraction(0)
    bends = [(1 / w, w) for w in wanted] + [(n / w, -w) for w, n in zip(wanted, sizes, strict=True)]
    for bend, change in sorted(bends):
        reached = total + slope * (bend - scale)
        if reached >= budget:
            break
        total, slope, scale = reached, slope + change, bend
    return scale + (budget - total) / slope if slope else scale
