"""What a plan says of a layer normalisation over all of an example."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fedkit.engine.plan.structure import LayerKind, Plan, PlanOp, strict


@strict
@dataclass(frozen=True)
class LayerNorm(PlanOp):
    """target = weight * (read(source) - mean) / deviation + bias, over all of an example at once.

    Attributes:
        source: What is normalised.
        target: Of the same shape.
        name: Name of the module; nothing is tracked, so that there are no statistics.
        eps: Greater than 0.
        weight: Name of the scale, a parameter with a value per element, if there is one: of the
            tensor's shape, (channels, width) where its height is 1, or (channels,) where its plane
            is (1, 1).
        bias: Name of the offset, likewise.
        kind: "layer" divides by sqrt(variance + eps); "l1-layer" by sqrt(pi / 2) times the mean
            absolute deviation, plus eps.
    """

    source: int
    target: int
    name: str
    eps: float
    weight: str | None
    bias: str | None
    kind: LayerKind

    @property
    def sources(self) -> tuple[int, ...]:
        """See `PlanOp.sources`."""
        return (self.source,)

    @property
    def parameters(self) -> tuple[str, ...]:
        """See `PlanOp.parameters`."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    def row_size(self, plan: Plan, name: str) -> int:
        """See `PlanOp.row_size`."""
        return math.prod(plan.tensors[self.target].shape[1:])

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        source, target = plan.tensors[self.source].shape, plan.tensors[self.target].shape
        if source != target:
            yield f"turns {source} into {target}; a layer norm must keep the shape"
        if not 0 < self.eps < math.inf:
            yield f"has eps {self.eps}; it must be finite and greater than 0"
        shapes: list[tuple[int, ...]] = [target]
        shapes += [(target[0], target[2])] if target[1] == 1 else []
        shapes += [target[:1]] if target[1:] == (1, 1) else []
        for name in self.parameters:
            if plan.weights.get(name) not in shapes:
                yield (
                    f"has parameter {name!r} of shape {plan.weights.get(name)}; it must be "
                    f"{' or '.join(map(str, shapes))}, a value per element"
                )
