"""Functions of one value at a time, as a plan names them: sigmoid, GELU, hard-swish."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from fedkit.engine.plan.structure import OneSourceOp, Plan

Kind = Literal[
    "sigmoid",
    "tanh",
    "silu",
    "gelu",
    "gelu_tanh",
    "hard_sigmoid",
    "hard_swish",
    "elu",
    "leaky_relu",
    "softplus",
    "exp",
    "log_sigmoid",
    "mish",
    "erf",
    "abs",
    "clip",
]
"""In the order of `enum function_kind` of functions.h; what each means is in
`fedkit.graph.ops.functions`."""

KINDS: tuple[Kind, ...] = get_args(Kind)

SETTINGS = {"hard_sigmoid": 2, "elu": 3, "leaky_relu": 1, "softplus": 2, "clip": 2}
"""How many numbers a kind has; others have none."""

MOST = 3.4028234663852886e38
"""The largest float32: an end of a clip that has none there."""


_LEAST = 2.0**-126
"""The smallest normal float32: what is divided by is no less."""


@dataclass(frozen=True)
class FunctionOp(OneSourceOp):
    """target = f(read(source)), value by value.

    Attributes:
        settings: What the graph's attributes are in order: slope and offset of a hard_sigmoid;
            alpha, gamma and rate of an elu; slope of a leaky_relu; beta, above 0, and threshold of
            a softplus; the ends of a clip.
    """

    source: int
    target: int
    settings: tuple[float, ...]
    kind: Kind

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        yield from self.shape_problems(plan)
        wanted = SETTINGS.get(self.kind, 0)
        if len(self.settings) != wanted:
            yield f"has settings {self.settings}; it must have {wanted}"
        if not all(abs(each) <= MOST for each in self.settings):
            yield f"has settings {self.settings}; they must be numbers of float32"
        if self.kind == "softplus" and self.settings[0] < _LEAST:
            yield f"has beta {self.settings[0]}; it must be greater than 0, in float32"
