"""A value of a model that is elements of another, while it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.graph import ir

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Moved:
    """Elements of a value, in any order and number of dimensions.

    Attributes:
        base: The value.
        numbers: Which of its elements, in the order of the graph, each is: of one example, in the
            dimensions of the model.
    """

    base: ir.Tensor
    numbers: Numbers

    def by(self, move: Callable[[Numbers], NDArray[Any]]) -> Moved:
        """Return what a move makes of it."""
        return Moved(self.base, np.asarray(move(self.numbers), np.int64))


def whole(x: ir.Tensor, shape: Sequence[int]) -> Moved:
    """Return a value of the graph as the model has it.

    Args:
        x: The value.
        shape: Of one example in the model.
    """
    numbers = np.arange(math.prod(x.shape)).reshape(x.shape)
    return Moved(x, ir.from_graph_layout(numbers)[0].reshape(shape))
