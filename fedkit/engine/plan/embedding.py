"""What a plan says of rows of a table that tokens choose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedkit.engine.plan.structure import OneSourceOp, Plan


@dataclass(frozen=True)
class Embedding(OneSourceOp):
    """target[c, 0, t] = table[input[t], c]: tokens become vectors.

    Attributes:
        source: The input, tensor 0, of shape (tokens, 1, 1); its values are whole.
        target: Of shape (channels, 1, tokens).
        table: Name of a parameter of shape (numbers that there are, channels).
        padding: The row that has no gradient, -1: all have.
    """

    source: int
    target: int
    table: str
    padding: int
    kind: Literal["embedding"] = "embedding"

    @property
    def parameters(self) -> tuple[str, ...]:
        """See `PlanOp.parameters`."""
        return (self.table,)

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    @property
    def takes_tokens(self) -> bool:
        """See `PlanOp.takes_tokens`."""
        return True

    def row_size(self, plan: Plan, name: str) -> int:
        """See `PlanOp.row_size`."""
        return math.prod(plan.weights[name])

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        source, target = (plan.tensors[each].shape for each in (self.source, self.target))
        if self.source != 0:
            yield f"reads tensor {self.source}; it must read the input, tensor 0"
        if source[1:] != (1, 1) or target[1:] != (1, source[0]):
            yield f"turns {source} into {target}; (tokens, 1, 1) must become (channels, 1, tokens)"
        found = plan.weights.get(self.table, ())
        if len(found) != 2 or found[1] != target[0]:
            yield f"has table {self.table!r} of shape {found}; it must be (numbers, {target[0]})"
        elif not -1 <= self.padding < found[0]:
            yield f"has row {self.padding} as padding; there are rows 0 to {found[0] - 1}, or -1"
