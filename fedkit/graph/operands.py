"""What readers ask of operands, and how they refuse: of use to the files of ops too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedkit.graph import ir


class Unsupported(Exception):
    """One op that cannot be lowered; collected, so that the user sees all of them at once."""


class ConstantOperand(Unsupported):
    """An operand that must be an activation, and is a constant or parameter."""


def require(condition: bool, reason: str) -> None:
    """Raise `Unsupported` unless the condition holds."""
    if not condition:
        raise Unsupported(reason)


def require_small(shape: ir.Shape) -> None:
    """Raise `Unsupported` for a value that no small device, and not this process, could hold."""
    is_small = math.prod(shape) <= ir.LARGEST_SIZE
    require(is_small, f"a value of shape {shape}, which has more than {ir.LARGEST_SIZE} elements")


def activation(value: Any, rank: int | None = None) -> ir.Tensor:
    """Return an operand that must be an activation, and of that rank."""
    if not isinstance(value, ir.Tensor):
        raise ConstantOperand("an operand is a constant where an activation is expected")
    require(rank in (None, len(value.shape)), f"input of shape {value.shape}, not of rank {rank}")
    return value


def constant(value: Any, what: str = "weights") -> ir.Array:
    """Return an operand that must be a constant."""
    require(not isinstance(value, ir.Tensor), f"{what} that depend on the input")
    return np.asarray(value)
