"""What a family of ops declares of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

from fedkit.engine.integer.integer_op import IntegerFamily
from fedkit.engine.plan.structure import PlanOp, Shape
from fedkit.engine.sparse.float_op import FloatOp
from fedkit.graph import ir


@dataclass(frozen=True)
class Example:
    """A small case, which every test of all ops tries.

    Attributes:
        op: The op. Its sources count from 1, as tensor 0 is the input; its target is the last.
        shapes: Of the tensors 0 to its target, (channels, height, width).
        weights: Shape of each of its parameters, by name.
    """

    op: PlanOp
    shapes: tuple[Shape, ...]
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One row of the registry.

    Attributes:
        op: What a plan says of it.
        examples: At least one for each of its kinds.
        sparse: How the sparse engine runs it; None: it cannot.
        integer: How the integer engine runs it; None: it cannot.
        from_graph: Kind of op in the model graph -> what makes this op of it: takes the
            `fedkit.engine.plan.from_graph.PlanMaker` and the op, returns the tensor written.
    """

    op: type[PlanOp]
    examples: tuple[Example, ...]
    sparse: type[FloatOp[Any]] | None
    integer: IntegerFamily | None
    from_graph: Mapping[str, Callable[[Any, ir.Op], int]] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names that plans call it by."""
        return get_args(get_type_hints(self.op)["kind"])
