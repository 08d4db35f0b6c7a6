"""An op with attributes, which no model has, to be registered by a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedkit.graph import ir


@dataclass(frozen=True)
class Times(ir.Attributes):
    """By what a value is multiplied."""

    factor: float
    axes: tuple[int, ...] = ()


def times(attributes: ir.Attributes | None) -> Callable[[np.random.Generator], ir.Graph]:
    def example(random: np.random.Generator) -> ir.Graph:
        del random
        tensors = {name: ir.Tensor(name, (1, 3)) for name in "xy"}
        op = ir.Op("times", ("x",), ("y",), attributes=attributes)
        return ir.Graph(tensors, (op,), ("x",), ("y",))

    return example


def multiplied(op: ir.Op, graph: ir.Graph, x: ir.FloatArray) -> ir.FloatArray:
    assert isinstance(op.attributes, Times)
    return x * np.float32(op.attributes.factor)
