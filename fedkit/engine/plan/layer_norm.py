"""What a plan says of a norm within each example: over all of it, or over groups of channels."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fedkit.engine.plan.structure import LayerKind, OneSourceOp, Plan, Shape


@dataclass(frozen=True)
class BlocksOfExample:
    """What a norm normalises together, of each example.

    Attributes:
        count: BlocksOfExample of an example.
        size: Values of a block.
        places: Whether a block is all channels of a place, not all places of some channels.
        centred: Whether the mean is taken off.
        l1: Whether the deviation is the mean absolute one.
    """

    count: int
    size: int
    places: bool = False
    centred: bool = True
    l1: bool = False


class ExampleNorm(OneSourceOp):
    """target = weight * (read(source) - mean) / deviation + bias, within each example.

    Attributes:
        source: What is normalised.
        name: Name of the module; nothing is tracked, so that there are no statistics.
        eps: Greater than 0.
        weight: Name of the scale, a parameter, if there is one.
        bias: Name of the offset, likewise.
        groups: Into how many equal parts the channels fall, each normalised by itself.
    """

    normalises: ClassVar[bool] = True

    if TYPE_CHECKING:

        @property
        def eps(self) -> float:
            """What is added to the spread."""

        @property
        def weight(self) -> str | None:
            """Name of the scale."""

        @property
        def bias(self) -> str | None:
            """Name of the offset."""

        @property
        def groups(self) -> int:
            """Into how many equal parts the channels fall, each normalised by itself."""

    @property
    @abstractmethod
    def per_channel(self) -> bool:
        """Whether the parameters have a value per channel, not one per element."""

    @abstractmethod
    def parameter_shapes(self, shape: Shape) -> list[tuple[int, ...]]:
        """Return the shapes that a parameter may have for a tensor of that shape."""

    def blocks(self, shape: Shape) -> BlocksOfExample:
        """Return what is normalised together of a tensor of this shape: groups of channels."""
        size = math.prod(shape) // self.groups
        return BlocksOfExample(self.groups, size, l1=self.kind == "l1-layer")

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
        return 1 if self.per_channel else math.prod(plan.tensors[self.target].shape[1:])

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        source, target = plan.tensors[self.source].shape, plan.tensors[self.target].shape
        if source != target:
            yield f"turns {source} into {target}; a layer norm must keep the shape"
        if not 0 < self.eps < math.inf:
            yield f"has eps {self.eps}; it must be finite and greater than 0"
        if self.groups < 1 or target[0] % self.groups:
            yield f"has {self.groups} groups for {target[0]} channels; they must be of equal size"
        shapes = self.parameter_shapes(target)
        for name in self.parameters:
            if plan.weights.get(name) not in shapes:
                yield (
                    f"has parameter {name!r} of shape {plan.weights.get(name)}; it must be "
                    f"{' or '.join(map(str, shapes))}, a value per "
                    f"{'channel' if self.per_channel else 'element'}"
                )


@dataclass(frozen=True)
class LayerNorm(ExampleNorm):
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
    def groups(self) -> int:
        """All channels are one group."""
        return 1

    @property
    def per_channel(self) -> bool:
        """See `ExampleNorm.per_channel`."""
        return False

    def parameter_shapes(self, shape: Shape) -> list[tuple[int, ...]]:
        """See `ExampleNorm.parameter_shapes`."""
        channels, height, width = shape
        of_series = [(channels, width)] if height == 1 else []
        return [shape, *of_series, *([(channels,)] if (height, width) == (1, 1) else [])]


@dataclass(frozen=True)
class GroupNorm(ExampleNorm):
    """The same over each group of channels of an example; with one of a channel, an instance norm.

    Attributes:
        source: What is normalised.
        target: Of the same shape.
        name: Name of the module; nothing is tracked, so that there are no statistics.
        eps: Greater than 0; it is added to the variance.
        weight: Name of the scale, a parameter of shape (channels,), if there is one.
        bias: Name of the offset, likewise.
        groups: How many, of equal size.
    """

    source: int
    target: int
    name: str
    eps: float
    weight: str | None
    bias: str | None
    groups: int
    kind: Literal["group"] = "group"

    @property
    def per_channel(self) -> bool:
        """See `ExampleNorm.per_channel`."""
        return True

    def parameter_shapes(self, shape: Shape) -> list[tuple[int, ...]]:
        """See `ExampleNorm.parameter_shapes`."""
        return [shape[:1]]
