"""What the compilers of both targets, C and FPGA, ask of a graph and its scales."""

from __future__ import annotations

import numpy as np

from edge.define.rounding import Scales, multipliers
from fedkit.core.errors import ExportError
from fedkit.core.numerics import Int64s
from fedkit.graph import ir


def check_compilable(graph: ir.Graph, target: str, several_outputs: bool = True) -> None:
    """Check that a graph is int8 and has one input.

    Args:
        graph: The graph.
        target: The target that asks, for the message.
        several_outputs: Whether it may have more than one.

    Raises:
        ExportError: It is not so.
    """
    if len(graph.inputs) != 1:
        raise ExportError(
            f"the graph has {len(graph.inputs)} inputs; the {target} target takes one: split the "
            "model"
        )
    if len(graph.outputs) > 1 and not several_outputs:
        raise ExportError(
            f"the graph has {len(graph.outputs)} outputs ({', '.join(map(repr, graph.outputs))}); "
            f"the {target} target gives one: export the model with that one"
        )
    if graph.tensors[graph.inputs[0]].dtype == "float32":
        raise ExportError(
            f"the graph is not int8; the {target} target takes no other: quantise it first"
        )


def multiplier_and_shift(real: Scales) -> tuple[Int64s, Int64s]:
    """Return the fixed-point factors of `half_up` as two arrays.

    Raises:
        ExportError: A number is too small or too large for any.
    """
    try:
        found = multipliers(real)
    except ValueError as error:
        raise ExportError(str(error)) from error
    return np.asarray(found.multiplier), np.asarray(found.shift)


def layout_of(tensor: ir.Tensor) -> str:
    """Return what the numbers of one example are, in order; a series is a map of height 1."""
    names = "[height, width, channels] = " if len(tensor.shape) == 4 else ""
    return f"{names}{list(tensor.shape[1:])}"
