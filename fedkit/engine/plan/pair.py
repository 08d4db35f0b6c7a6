"""Products, differences and sums of two tensors, as a plan names them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from fedkit.engine.plan.structure import Plan, PlanOp, Shape

Kind = Literal["mul", "sub", "add-gate"]
"""In the order of `enum pair_kind` of pair.h. Sums of equal shapes are an `Add`, whose gradients
may share memory."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class PairOp(PlanOp):
    """target = read(left) * read(right), or their difference or sum.

    Both have the shape of the target, (channels, height, width), or one of them (channels, 1, 1)
    and goes with every pixel.
    """

    left: int
    right: int
    target: int
    kind: Kind

    @property
    def sources(self) -> tuple[int, ...]:
        """See `PlanOp.sources`."""
        return self.left, self.right

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return self.kind == "mul"

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        left, right, target = (plan.tensors[t].shape for t in (*self.sources, self.target))
        if target != paired(left, right):
            yield (
                f"combines {left} and {right} into {target}; the shapes must be equal, or one of "
                "the two have a single pixel per channel"
            )


def paired(left: Shape, right: Shape) -> Shape | None:
    """Return what a pair of two shapes has; None: they are no pair."""
    one, other = sorted((left, right), key=lambda shape: shape[1:] == (1, 1))
    return one if other in (one, (one[0], 1, 1)) else None
