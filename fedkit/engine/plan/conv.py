"""What a plan says of convolutions, the ops whose weights are pruned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.plan.structure import OneSourceOp, Pair, Plan, PlanOp
from fedkit.engine.plan.windows import window_problems
from fedkit.graph.phases import phases, reach

Order = NDArray[np.int64]


class Convolution(OneSourceOp):
    """target = weights * read(source) + bias, zeros around the read values.

    The weights of a convolution are [target channels, in / groups, *kernel], in this order wherever
    an engine computes; where its parameter has them, `order` says.
    """

    if TYPE_CHECKING:

        @property
        def weight(self) -> str:
            """Name of the parameter that has the weights."""

        @property
        def bias(self) -> str | None:
            """Name of the offsets of the channels, if there are some."""

        @property
        def kernel(self) -> Pair:
            """Of the convolution."""

        @property
        def stride(self) -> Pair:
            """Of the convolution."""

        @property
        def padding(self) -> Pair:
            """Of the convolution, on both sides."""

        @property
        def dilation(self) -> Pair:
            """Of the convolution."""

        @property
        def groups(self) -> int:
            """Of channels."""

    finishes_gradients: ClassVar[bool] = True
    reads_codes: ClassVar[bool] = True

    @property
    def parameters(self) -> tuple[str, ...]:
        """See `PlanOp.parameters`."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    def order(self, shape: tuple[int, ...]) -> Order | None:
        """Return where each weight of the convolution is in its parameter, flat; -1: it is 0.

        Args:
            shape: Of the parameter.

        Returns:
            int64 [weights of the convolution], or None: they lie in the same order.
        """
        return None

    def _problems(self, plan: Plan) -> Iterator[str]:
        """Yield what is wrong with any convolution."""
        source, target = plan.tensors[self.source].shape, plan.tensors[self.target].shape
        if self.groups < 1 or source[0] % self.groups or target[0] % self.groups:
            yield (
                f"has {self.groups} groups, which must divide its {source[0]} input and "
                f"{target[0]} output channels"
            )


def reads_plain(plan: Plan, op: Convolution) -> bool:
    """Say whether a convolution's inputs lie in memory just as it reads them."""
    source = plan.tensors[op.source]
    return source.norm is None and source.activation == "none" and op.padding == (0, 0)


def shared_parameters(plan: Plan) -> dict[str, int]:
    """Return the names of parameters that several layers use, and how many do.

    Layers that use one together are alike in all but what they read and write; see `verify`.
    """
    used = Counter(name for op in plan.ops if isinstance(op, Convolution) for name in op.parameters)
    return {name: count for name, count in used.items() if count > 1}


def are_alike(ops: Iterable[PlanOp]) -> bool:
    """Whether ops are convolutions that differ in what they read and write alone; not of none."""
    found = {replace(op, source=0, target=0) if isinstance(op, Conv) else None for op in ops}
    return len(found) == 1 and None not in found


@dataclass(frozen=True)
class Conv(Convolution):
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

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        source, target = plan.tensors[self.source].shape, plan.tensors[self.target].shape
        yield from self._problems(plan)
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


@dataclass(frozen=True)
class TransposedConv(Convolution):
    """The part of a transposed convolution that computes: one of stride 1 over what is read.

    Its target has `step` channels for each of the transposed convolution's: what these channels
    are as pixels of blocks, channel by channel, is the result of that. A weight is [in, out /
    groups, *size], as the model has it; the convolution has some more, which stay 0.

    Attributes:
        size: Of the model's kernel; of a series it may have a weight without height.
        step: The model's stride.
        gap: The model's dilation.
        padding: Of the convolution, on both sides.
    """

    source: int
    target: int
    weight: str
    size: Pair
    step: Pair
    gap: Pair
    padding: Pair
    groups: int
    kind: Literal["transposed-conv"] = "transposed-conv"

    @property
    def bias(self) -> None:
        """What makes pixels of the channels adds it."""
        return None

    @property
    def kernel(self) -> Pair:
        """See `Convolution.kernel`."""
        height, width = (
            -(-reach(taps, gap) // step)
            for taps, gap, step in zip(self.size, self.gap, self.step, strict=True)
        )
        return height, width

    @property
    def stride(self) -> Pair:
        """See `Convolution.stride`."""
        return 1, 1

    @property
    def dilation(self) -> Pair:
        """See `Convolution.dilation`."""
        return 1, 1

    def order(self, shape: tuple[int, ...]) -> Order:
        """See `Convolution.order`."""
        return _order(shape[:2], self.size, self.step, self.gap, self.groups)

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        if min(*self.size, *self.step, *self.gap) < 1 or min(self.padding) < 0:
            yield (
                f"has kernel {self.size}, stride {self.step}, dilation {self.gap}, padding "
                f"{self.padding}; the first three must be at least 1, padding at least 0"
            )
            return
        yield from self._problems(plan)
        source, target = plan.tensors[self.source].shape, plan.tensors[self.target].shape
        block, found = math.prod(self.step), plan.weights.get(self.weight)
        weight = (source[0], target[0] // block // max(1, self.groups), *self.size)
        of_series = self.size[0] == 1 and found == (*weight[:2], weight[3])
        if target[0] % (block * max(1, self.groups)):
            yield f"has {target[0]} channels, which must be a multiple of {block} for each group"
        elif found != weight and not of_series:
            yield f"has weight {self.weight!r} of shape {found}; it must be {weight}"
        yield from window_problems(source, target, self)


@lru_cache(maxsize=64)
def _order(channels: tuple[int, ...], size: Pair, step: Pair, gap: Pair, groups: int) -> Order:
    shape = (*channels, *size)
    numbers = np.arange(1, math.prod(shape) + 1).reshape(shape)
    return np.ascontiguousarray(phases(numbers, step, gap, groups).reshape(-1) - 1)


def arranged(values: NDArray[Any], order: Order | None) -> NDArray[Any]:
    """Return a parameter's values, flat, in the order of the convolution; 0 where it has none."""
    flat = values.reshape(-1)
    return flat if order is None else np.where(order < 0, flat.dtype.type(0), flat[order])


def restored(values: NDArray[Any], order: Order | None, shape: tuple[int, ...]) -> NDArray[Any]:
    """Undo `arranged`; the result has the parameter's shape, and may share memory."""
    if order is None:
        return values.reshape(shape)
    found = np.zeros(math.prod(shape), values.dtype)
    found[order[order >= 0]] = values.reshape(-1)[order >= 0]
    return found.reshape(shape)
