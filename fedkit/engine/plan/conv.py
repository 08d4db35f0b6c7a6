"""What a plan says of a convolution, the op whose weights are pruned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from fedkit.engine.plan.structure import Pair, Plan, PlanOp, strict
from fedkit.engine.plan.windows import window_problems


@strict
@dataclass(frozen=True)
class Conv(PlanOp):
    """target = weight * read(source) + bias, zeros around the read values.

    A weight [out, in / groups, *kernel] keeps the axes that it has in the model: four, three of a
    series, which is a map of height 1, or two of a linear layer.
    """

    source: int
    target: int
    weight: str
    bias: str | None
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    kind: Literal["conv"] = "conv"

    finishes_gradients: ClassVar[bool] = True

    @property
    def sources(self) -> tuple[int, ...]:
        """See `PlanOp.sources`."""
        return (self.source,)

    @property
    def parameters(self) -> tuple[str, ...]:
        """See `PlanOp.parameters`."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        source, target = plan.tensors[self.source].shape, plan.tensors[self.target].shape
        if self.groups < 1 or source[0] % self.groups or target[0] % self.groups:
            yield (
                f"has {self.groups} groups, which must divide its {source[0]} input and "
                f"{target[0]} output channels"
            )
        weight = (target[0], source[0] // self.groups, *self.kernel)
        found = plan.weights.get(self.weight)
        linear = self.kernel == (1, 1) and self.groups == 1 and found == weight[:2]
        of_series = self.kernel[0] == 1 and found == (*weight[:2], weight[3])
        if found != weight and not linear and not of_series:
            yield f"has weight {self.weight!r} of shape {found}; it must be {weight}"
        if self.weight not in plan.prunable:
            yield f"has weight {self.weight!r}, which must be among the prunable"
        if self.bias is not None and plan.weights.get(self.bias) != target[:1]:
            found = plan.weights.get(self.bias)
            yield f"has bias {self.bias!r} of shape {found}; it must be {target[:1]}"
        yield from window_problems(source, target, self, self.dilation)
