"""What a model consists of, without its values."""

from __future__ import annotations

from dataclasses import dataclass

from fedkit.sparse.state import Shapes


@dataclass(frozen=True)
class Layout:
    """Names and shapes of what a model consists of.

    Attributes:
        weights: Shape per trainable parameter, in the model's order.
        stats: Shape per running statistic of the norm layers.
        prunable: Names of the prunable parameters (convolution and linear weights), in order.
    """

    weights: Shapes
    stats: Shapes
    prunable: tuple[str, ...]

    @property
    def prunable_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape per prunable parameter."""
        return {name: self.weights[name] for name in self.prunable}
