"""What a plan is made of: tensors, norms, and what all its ops have in common.

A plan speaks of ONE example, shape (channels, height, width); a linear layer is a 1x1 convolution
on (features, 1, 1). The kinds of ops are the files of `fedkit.engine.ops`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar, Literal

from fedkit.sparse.layout import Layout
from fedkit.tasks.losses import PLAIN, Loss

VERSION = 1
"""Version of the plan file; a reader refuses others."""

Activation = Literal["none", "relu", "relu6"]
LayerKind = Literal["layer", "l1-layer"]
Pair = tuple[int, int]
Shape = tuple[int, int, int]
Dims = Literal[1, 2, 3]
"""Of one example of a model's inputs or outputs: features, a series or a map."""


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the (channels, height, width) in which a plan stores an example of a model's shape.

    Features are channels of one pixel, and a series, (channels, length), is a map of height 1.
    """
    if len(shape) == 2:
        return shape[0], 1, shape[1]
    return (*shape, 1, 1) if len(shape) == 1 else shape


@dataclass(frozen=True)
class Norm:
    """A batch normalisation over (examples, height, width), per channel.

    Attributes:
        name: Name of the module; the running statistics are `stats`.
        kind: "batch" divides by sqrt(variance + eps); "l1-batch" by sigma + eps, where sigma is
            sqrt(pi / 2) times the mean absolute deviation and its square the running_var.
        eps: Greater than 0.
        weight: Name of the scale, a parameter of shape (channels,), if there is one.
        bias: Name of the offset, likewise.
    """

    name: str
    kind: Literal["batch", "l1-batch"]
    eps: float
    weight: str | None
    bias: str | None

    @property
    def stats(self) -> tuple[str, str]:
        """Names of the running mean and variance."""
        return f"{self.name}.running_mean", f"{self.name}.running_var"


@dataclass(frozen=True)
class StoredTensor:
    """A stored tensor. It holds RAW values; norm, then activation, are applied at every READ.

    Attributes:
        shape: (channels, height, width) of one example.
        norm: What a read normalises by; its result is never stored.
        activation: What a read applies after the norm, likewise.
    """

    shape: Shape
    norm: Norm | None = None
    activation: Activation = "none"


class PlanOp(ABC):
    """One operation. Every kind is a frozen dataclass, whose fields are what the file says of it.

    Attributes:
        kind: A field of type `Literal` with the names that the file calls it by.
        target: The tensor it writes.
        shares_gradient: Its sources' gradients are the target's, and may lie in the same memory.
        normalises: It is a norm; what it trains are a norm's parameters.
        finishes_gradients: Its backward pass can pass a source's gradient through the activation.
        reads_codes: Its backward pass can read what is stored in few bits.
    """

    if TYPE_CHECKING:

        @property
        def kind(self) -> str:
            """Name of the kind."""

        @property
        def target(self) -> int:
            """The tensor it writes."""

    shares_gradient: ClassVar[bool] = False
    normalises: ClassVar[bool] = False
    finishes_gradients: ClassVar[bool] = False
    reads_codes: ClassVar[bool] = False

    @property
    @abstractmethod
    def sources(self) -> tuple[int, ...]:
        """The tensors it reads."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what it trains."""
        return ()

    @property
    def rereads(self) -> bool:
        """Whether its backward pass reads its sources again."""
        return False

    @property
    def needs_exact(self) -> bool:
        """Whether it finds places by what it reads again, which then must be what it was."""
        return self.takes_tokens

    @property
    def keeps_argmax(self) -> bool:
        """Whether it reads again only to find its maxima, of which bytes can tell where they were.

        One byte for each value of its target; it has one source then.
        """
        return False

    @property
    def takes_tokens(self) -> bool:
        """Whether it reads the input, of which values are whole numbers then, as places."""
        return False

    def channels(self, plan: Plan) -> range:
        """Return the channels of its target that it writes."""
        return range(plan.tensors[self.target].shape[0])

    def row_size(self, plan: Plan, name: str) -> int:
        """Return how many values of a parameter, in order, have integers of one unit."""
        return 1

    @abstractmethod
    def problems(self, plan: Plan) -> Iterator[str]:
        """Yield what is wrong with it in a plan whose tensors exist and are in order."""


class OneSourceOp(PlanOp):
    """An op that reads one tensor, its field `source`."""

    if TYPE_CHECKING:

        @property
        def source(self) -> int:
            """The tensor it reads."""

    @property
    def sources(self) -> tuple[int, ...]:
        """See `PlanOp.sources`."""
        return (self.source,)

    def shape_problems(self, plan: Plan) -> Iterator[str]:
        """Yield what is wrong where an op keeps the shape of what it reads."""
        source, target = (plan.tensors[each].shape for each in (self.source, self.target))
        if source != target:
            yield f"turns {source} into {target}; it must keep the shape"


sources = attrgetter("sources")
"""What an op reads: the function of 0.1, for its old path until 0.2."""


@dataclass(frozen=True)
class Plan:
    """A model, captured.

    Attributes:
        weights: Shape per trainable parameter, in the model's order.
        stats: Shape per running statistic, in the model's order.
        prunable: Names of the convolution and linear weights, in the model's order.
        tensors: All tensors; the first is the input, which has neither norm nor activation.
        ops: In the order of execution.
        output: Index of the tensor whose read value is what the model returns.
        version: `VERSION`.
        loss: What training makes small; left out of the file where it is plain cross-entropy.
        output_dims: Of what the model returns for one example; left out of the file where it is 1.
    """

    weights: dict[str, tuple[int, ...]]
    stats: dict[str, tuple[int, ...]]
    prunable: tuple[str, ...]
    tensors: tuple[StoredTensor, ...]
    ops: tuple[PlanOp, ...]
    output: int
    version: int = VERSION
    loss: Loss = PLAIN
    output_dims: Dims = 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        """What the model returns for one example: (features,), or (channels, length or more)."""
        channels, height, width = self.tensors[self.output].shape
        return {1: (channels,), 2: (channels, width), 3: (channels, height, width)}[
            self.output_dims
        ]

    @property
    def tokens(self) -> int:
        """How many whole numbers there are of which inputs consist; 0: they are real numbers."""
        tables = [self.weights[op.parameters[0]] for op in self.ops if op.takes_tokens]
        return min((rows for rows, *_ in tables), default=0)

    @property
    def layout(self) -> Layout:
        """Names and shapes, as engines give them."""
        return Layout(self.weights, self.stats, self.prunable)


def norm_levels(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """Return the plan's norms by level: each depends on norms of earlier levels alone."""
    depth = dict.fromkeys(range(len(plan.tensors)), 0)  # norms on the longest way to a raw tensor
    levels: dict[int, list[str]] = {}
    for op in plan.ops:
        for source in op.sources:
            passed = depth[source] + (plan.tensors[source].norm is not None)
            depth[op.target] = max(depth[op.target], passed)
    for index, tensor in enumerate(plan.tensors):
        if tensor.norm is not None:
            levels.setdefault(depth[index], []).append(tensor.norm.name)
    return tuple(tuple(levels[level]) for level in sorted(levels))


def absolute_norms(plan: Plan) -> frozenset[str]:
    """Return the names of the plan's L1 norms."""
    norms = (tensor.norm for tensor in plan.tensors if tensor.norm is not None)
    return frozenset(norm.name for norm in norms if norm.kind == "l1-batch")


def norm_parameters(plan: Plan) -> frozenset[str]:
    """Return the names of the parameters of the plan's norms, of whatever kind."""
    norms = (tensor.norm for tensor in plan.tensors if tensor.norm is not None)
    named = [name for norm in norms for name in (norm.weight, norm.bias) if name is not None]
    named += [name for op in plan.ops if op.normalises for name in op.parameters]
    return frozenset(named)
