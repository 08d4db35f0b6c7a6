"""What a plan says of a softmax over channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedkit.engine.plan.structure import OneSourceOp, Plan


@dataclass(frozen=True)
class SoftmaxOp(OneSourceOp):
    """target[c] = exp(read(source)[c]) / sum of that over the channels, at each place."""

    source: int
    target: int
    kind: Literal["softmax"] = "softmax"

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        yield from self.shape_problems(plan)
