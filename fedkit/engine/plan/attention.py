"""What a plan says of attention by heads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedkit.engine.plan.structure import Plan, PlanOp

_MOST = 2.0**127


@dataclass(frozen=True)
class AttentionOp(PlanOp):
    """target = read(value) softmax(scale * read(key)^T read(query)), for each head.

    Attributes:
        query: Of shape (heads * size, rows, columns); each pixel is a place.
        key: Of as many channels, in a plane of its own.
        value: (heads * its own size), in the plane of the keys.
        target: The channels of the values, in the plane of the queries.
        heads: Each has as many channels that lie one behind the other.
        scale: Of scores.
        causal: Whether a place sees none behind it.
    """

    query: int
    key: int
    value: int
    target: int
    heads: int
    scale: float
    causal: bool
    kind: Literal["attention"] = "attention"

    @property
    def sources(self) -> tuple[int, ...]:
        """See `PlanOp.sources`."""
        return self.query, self.key, self.value

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        query, key, value, target = (
            plan.tensors[each].shape for each in (*self.sources, self.target)
        )
        if key[0] != query[0] or value[1:] != key[1:] or target != (value[0], *query[1:]):
            yield f"has queries {query}, keys {key}, values {value} for {target}; they must fit"
        if self.heads < 1 or query[0] % self.heads or value[0] % self.heads:
            yield f"has {self.heads} heads for {query[0]} and {value[0]} channels; they must divide"
        if not math.isfinite(self.scale) or abs(self.scale) > _MOST:
            yield f"has a scale of {self.scale}; it must be a number of float32"
