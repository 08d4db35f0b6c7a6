"""What a plan says of products of two activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedkit.engine.plan.structure import Plan, PlanOp


@dataclass(frozen=True)
class Product(PlanOp):
    """target[n, row, m] = sum over k of read(left)[k, row, m] * read(right)[n, row, k].

    Of (channels, rows, columns) each row of a map holds a matrix, of its columns by its channels.

    Attributes:
        left: Of shape (terms, rows, m).
        right: (n, rows, terms).
        target: (n, rows, m).
    """

    left: int
    right: int
    target: int
    kind: Literal["product"] = "product"

    @property
    def sources(self) -> tuple[int, ...]:
        """See `PlanOp.sources`."""
        return self.left, self.right

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        left, right, target = (plan.tensors[t].shape for t in (*self.sources, self.target))
        terms, rows, columns = left
        if right[1:] != (rows, terms) or target != (right[0], rows, columns):
            yield f"multiplies {left} by {right} into {target}; matrices of rows must go together"
