"""What a plan says of values that all examples have."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.plan.structure import Plan, PlanOp

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Spread(PlanOp):
    """target = values, the same for each example.

    Attributes:
        values: Of kind "learned" the name of a parameter; of "numbers" float32 in little endian, as
            base64. Both have as many values as the target, in its order.
        target: What is written.
    """

    values: str
    target: int
    kind: Literal["learned", "numbers"]

    @property
    def sources(self) -> tuple[int, ...]:
        """See `PlanOp.sources`."""
        return ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """See `PlanOp.parameters`."""
        return (self.values,) if self.kind == "learned" else ()

    def row_size(self, plan: Plan, name: str) -> int:
        """See `PlanOp.row_size`."""
        return math.prod(plan.weights[name])

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        wanted = math.prod(plan.tensors[self.target].shape)
        if self.kind == "learned":
            found = math.prod(plan.weights.get(self.values, (0,)))
        else:
            numbers = numbers_of(self)
            found = 0 if numbers is None else numbers.size
            if numbers is not None and not np.isfinite(numbers).all():
                yield "has numbers that are not finite"
        if found != wanted:
            yield f"has {found} values for {wanted}; there must be one for each"


def numbers_of(op: Spread) -> Floats | None:
    """Return the numbers of an op, None where its text is none."""
    try:
        return np.frombuffer(base64.b64decode(op.values, validate=True), "<f4").astype(np.float32)
    except (binascii.Error, ValueError):
        return None


def text_of(numbers: Floats) -> str:
    """Return what `numbers_of` reads."""
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode()
