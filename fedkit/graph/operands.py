"""What readers ask of operands, and how they refuse: of use to the files of ops too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedkit.graph import ir
from fedkit.graph.spec import ModelReader, OnnxNode


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


def rank_of(reader: ModelReader, node: Any) -> int:
    """Return how many dimensions the model gives all activations that a node reads."""
    ranks = sorted(reader.ranks_of(node))
    require(len(ranks) == 1, f"operands of {ranks} dimensions; they must have as many")
    return ranks[0]


def require_channels(what: str, axis: int, rank: int) -> None:
    """Raise `Unsupported` unless an axis of the model is that of channels or features."""
    reason = (
        f"a {what} over dimension {axis}; dimension 1, channels or features, or the last can be"
    )
    require(axis % rank == 1, reason)


def constant(value: Any, what: str = "weights") -> ir.Array:
    """Return an operand that must be a constant."""
    require(not isinstance(value, ir.Tensor), f"{what} that depend on the input")
    return np.asarray(value)


# Of nodes of ONNX files


def require_broadcast(operator: str, node: OnnxNode) -> None:
    """Raise `Unsupported` for operands of several shapes in the opset that has none."""
    shapes = {np.shape(x) if isinstance(x, np.ndarray) else "activation" for x in node.inputs}
    known = node.opset >= _BROADCASTS or len(shapes) == 1
    require(known, f"{operator} of several shapes; before opset {_BROADCASTS} they must be one")


_BROADCASTS = 8
"""Opset from which Sum, Max and Min broadcast."""


def integers(node: OnnxNode, name: str, count: int, default: int) -> tuple[int, ...]:
    """Return an attribute of that many integers, each of them `default` if it is left out."""
    values = tuple(node.attribute(name, (default,) * count))
    require(len(values) == count, f"{name} = {list(values)}; there must be {count} of them")
    return values


def number(node: OnnxNode, name: str, index: int, default: float | None = None) -> Any:
    """Return a setting that is one number, or None."""
    value = np.asarray(node.setting(name, index, default))
    require(value.size == 1, f"{name} = {value.tolist()}; one number can be")
    return value.item()


def weights(node: OnnxNode, index: int, rank: int) -> ir.Array:
    """Return a constant operand of float32 and of that rank."""
    data = constant(node.operand(index))
    fits = data.dtype == np.float32 and data.ndim == rank
    require(fits, f"weights are {data.dtype} {data.shape}; float32 of rank {rank} can be")
    return data


def vector(node: OnnxNode, index: int, length: int) -> ir.Array | None:
    """Return a constant operand of that many values, None if it is left out."""
    if node.operand(index) is None:
        return None
    found = weights(node, index, 1)
    require(len(found) == length, f"{len(found)} values for {length} channels")
    return found
