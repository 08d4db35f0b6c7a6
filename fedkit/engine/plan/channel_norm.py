"""What a plan says of a norm over the channels of each place: of tokens, or of pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from fedkit.engine.plan.layer_norm import BlocksOfExample
from fedkit.engine.plan.structure import OneSourceOp, Plan, Shape


@dataclass(frozen=True)
class ChannelNorm(OneSourceOp):
    """target = weight * (read(source) - mean) / deviation + bias, over the channels of each place.

    Attributes:
        source: What is normalised.
        target: Of the same shape.
        eps: Greater than 0; it is added to the variance.
        weight: Name of the scale, a parameter of shape (channels,), if there is one.
        bias: Name of the offset, likewise.
        centred: Whether the mean is taken off; else the deviation is that from 0.
    """

    source: int
    target: int
    eps: float
    weight: str | None
    bias: str | None
    centred: bool
    kind: Literal["channel-norm"] = "channel-norm"
    normalises: ClassVar[bool] = True

    @property
    def parameters(self) -> tuple[str, ...]:
        """See `PlanOp.parameters`."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    def blocks(self, shape: Shape) -> BlocksOfExample:
        """Return what is normalised together of a tensor of this shape: each place by itself."""
        return BlocksOfExample(math.prod(shape[1:]), shape[0], places=True, centred=self.centred)

    @property
    def per_channel(self) -> bool:
        """Whether the parameters have a value per channel, as they do."""
        return True

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        yield from self.shape_problems(plan)
        target = plan.tensors[self.target].shape
        if not 0 < self.eps < math.inf:
            yield f"has eps {self.eps}; it must be finite and greater than 0"
        for name in self.parameters:
            if plan.weights.get(name) != target[:1]:
                found = plan.weights.get(name)
                yield f"has parameter {name!r} of shape {found}; it must be {target[:1]}"
