"""How much of a model a density speaks of: not every weight can be pruned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedkit.sparse.layout import Layout

_NAMED = 3


@dataclass(frozen=True)
class Reach:
    """Which weights of a model can be pruned.

    Attributes:
        weights: All trainable weights, biases and norm parameters included.
        prunable: Those among them that a density counts.
        others: The other parameters with their sizes, the largest first.
    """

    weights: int
    prunable: int
    others: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, layout: Layout) -> Reach:
        """Return that of a model."""
        sizes = {name: math.prod(shape) for name, shape in layout.weights.items()}
        others = [(name, size) for name, size in sizes.items() if name not in layout.prunable]
        prunable = sum(sizes[name] for name in layout.prunable)
        others.sort(key=lambda part: -part[1])
        return cls(sum(sizes.values()), prunable, tuple(others))

    @property
    def share(self) -> float:
        """Prunable weights among all, 0 .. 1."""
        return self.prunable / self.weights

    def kept_of_all(self, density: float) -> float:
        """Return which share of all weights a density of the prunable ones keeps, 0 .. 1."""
        return 1 - self.share * (1 - density)

    def line(self, density: float) -> str:
        """Say what a density means for the whole model."""
        return (
            f"{self.weights:,}, of which {self.prunable:,} ({self.share:.1%}) can be pruned; "
            f"density {density:.4g} of them keeps {self.kept_of_all(density):.1%} of all"
        )

    def warning(self, density: float) -> str:
        """Say that most weights stay, whatever the density; "" where most can be pruned."""
        if self.share >= 0.5 or density == 1:
            return ""
        largest = ", ".join(f"{name} ({size:,})" for name, size in self.others[:_NAMED])
        rest = len(self.others) - _NAMED
        more = f" and {rest} smaller" if rest > 0 else ""
        return (
            f"only {self.share:.1%} of the model's weights can be pruned, those of convolution and "
            f"linear layers; density {density:.4g} keeps {self.kept_of_all(density):.1%} of all, "
            f"so messages shrink at most {1 / self.kept_of_all(density):.2f} times and memory no "
            f"more; not prunable are {largest}{more}"
        )
