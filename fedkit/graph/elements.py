"""A value of a model that is elements of another, while it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
        examples: The dimension of the model that holds the examples, which `numbers` lack.
    """

    base: ir.Tensor
    numbers: Numbers
    examples: int = 0

    def by(self, move: Callable[[Numbers], NDArray[Any]]) -> Moved:
        """Return what a move makes of it."""
        return replace(self, numbers=np.asarray(move(self.numbers), np.int64))

    def of_several(self, count: int) -> Numbers:
        """Return the numbers of so many examples, those of each beyond those of the one before."""
        step = math.prod(self.base.shape)
        each = [self.numbers + number * step for number in range(count)]
        return np.stack(each, self.examples)

    def apart(self, numbers: Numbers) -> Moved | None:
        """Return one example of what became of `of_several` of two or more; None if they mix."""
        step = math.prod(self.base.shape)
        for dim, count in enumerate(numbers.shape):
            one = numbers.take([0], dim)
            steps = step * np.arange(count).reshape([-1] + [1] * (numbers.ndim - 1 - dim))
            if count > 1 and np.array_equal(numbers - one, np.broadcast_to(steps, numbers.shape)):
                return replace(self, numbers=one.squeeze(dim), examples=dim)
        return None


def whole(x: ir.Tensor, shape: Sequence[int]) -> Moved:
    """Return a value of the graph as the model has it.

    Args:
        x: The value.
        shape: Of one example in the model.
    """
    numbers = np.arange(math.prod(x.shape)).reshape(x.shape)
    return Moved(x, ir.from_graph_layout(numbers)[0].reshape(shape))
