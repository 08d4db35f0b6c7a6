"""The slow, readable definition of what a float graph computes; each op is `fedkit.graph.ops`'s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.ops.elementwise import activate
from fedkit.graph.ops.registry import spec_of

FloatArray = ir.FloatArray
Visitor = Callable[[str, FloatArray], None]

Value = TypeVar("Value", bound=np.generic)
Operands = list[NDArray[Value]]


def evaluate(graph: ir.Graph, inputs: FloatArray, visit: Visitor | None = None) -> FloatArray:
    """Run a float graph.

    Args:
        graph: Not quantised, with one input and one output.
        inputs: float32 [n, h, w, c] or [n, f], any n, in the graph's layout.
        visit: Called with the name and value of each activation as soon as it is known.

    Returns:
        float32 [n, ...], the graph's output.

    Raises:
        ExportError: The graph is quantised, or the inputs do not fit it.
    """
    check_inputs(graph, inputs, "float32")
    return run(graph, inputs, lambda op, operands: compute(op, graph, operands), visit)


def compute(op: ir.Op, graph: ir.Graph, operands: Sequence[FloatArray]) -> FloatArray:
    """Run one op of a float graph, activation included; what it reads is given."""
    return activate(op.activation, spec_of(op).real(op, graph, *operands))


def run(
    graph: ir.Graph,
    inputs: NDArray[Value],
    compute: Callable[[ir.Op, Operands[Value]], NDArray[Value]],
    visit: Callable[[str, NDArray[Value]], None] | None,
) -> NDArray[Value]:
    """Run a graph op by op; a value is let go of once its last reader has run.

    Args:
        graph: With one input and one output.
        inputs: That input.
        compute: Gives an op's result from its operands, constants among them.
        visit: Called with the name and value of each activation as soon as it is known.

    Returns:
        The graph's output.
    """
    values: dict[str, NDArray[Value]] = {graph.inputs[0]: inputs}
    last_use = {name: op for op in graph.ops for name in op.inputs}
    if visit:
        visit(graph.inputs[0], inputs)
    for op in graph.ops:
        value = compute(op, [values[n] if n in values else graph.constant(n) for n in op.inputs])
        values[op.output] = value
        if visit:
            visit(op.output, value)
        for name in set(op.inputs) - set(graph.outputs):
            if last_use[name] is op:
                values.pop(name, None)
    return values[graph.outputs[0]]


def check_inputs(graph: ir.Graph, inputs: NDArray[Any], dtype: ir.DType) -> None:
    """Raise an `ExportError` where inputs do not fit a graph of such numbers."""
    expected = graph.tensors[graph.inputs[0]]
    if expected.dtype != dtype:
        raise ExportError(
            f"the graph is {expected.dtype}, not {dtype}: `evaluate` runs float graphs only, "
            f"`evaluate_int8` those that `quantize` made"
        )
    if inputs.shape[1:] != expected.shape[1:] or inputs.dtype != dtype:
        raise ExportError(
            f"inputs are {inputs.dtype} {inputs.shape}; the graph takes {dtype} "
            f"[n, {', '.join(map(str, expected.shape[1:]))}]"
        )
