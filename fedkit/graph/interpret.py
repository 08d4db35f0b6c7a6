"""The slow, readable definition of what a float graph computes; each op is `fedkit.graph.ops`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        graph: Not quantised, with one input.
        inputs: float32 [n, h, w, c] or [n, f], any n, in the graph's layout.
        visit: Called with the name and value of each activation as soon as it is known.

    Returns:
        float32 [n, ...], the graph's output; of several the first.

    Raises:
        ExportError: The graph is quantised, or the inputs do not fit it.
    """
    check_inputs(graph, inputs, "float32")
    return run(graph, inputs, lambda op, operands: compute(op, graph, operands), visit)[0]


def evaluate_all(graph: ir.Graph, inputs: Mapping[str, FloatArray]) -> list[FloatArray]:
    """Run a float graph of any number of inputs and outputs.

    Args:
        graph: Not quantised.
        inputs: Name of an input -> float32 [n, ...], the same n for all, in the graph's layout.

    Returns:
        The outputs, in their order.

    Raises:
        ExportError: An input is missing or does not fit.
    """
    for name in graph.inputs:
        if name not in inputs:
            raise ExportError(f"input {name!r} is missing; the graph takes {list(graph.inputs)}")
        _check_input(graph.tensors[name], inputs[name], "float32")
    return _run(graph, dict(inputs), lambda op, operands: compute(op, graph, operands), None)


def compute(op: ir.Op, graph: ir.Graph, operands: Sequence[FloatArray]) -> FloatArray:
    """Run one op of a float graph, activation included; what it reads is given."""
    return activate(op.activation, spec_of(op).real(op, graph, *operands))


def run(
    graph: ir.Graph,
    inputs: NDArray[Value],
    compute: Callable[[ir.Op, Operands[Value]], NDArray[Value]],
    visit: Callable[[str, NDArray[Value]], None] | None,
) -> list[NDArray[Value]]:
    """Run a graph op by op; a value is let go of once its last reader has run.

    Args:
        graph: With one input.
        inputs: That input.
        compute: Gives an op's result from its operands, constants among them.
        visit: Called with the name and value of each activation as soon as it is known.

    Returns:
        The graph's outputs.
    """
    return _run(graph, {graph.inputs[0]: inputs}, compute, visit)


def _run(
    graph: ir.Graph,
    values: dict[str, NDArray[Value]],
    compute: Callable[[ir.Op, Operands[Value]], NDArray[Value]],
    visit: Callable[[str, NDArray[Value]], None] | None,
) -> list[NDArray[Value]]:
    """Run a graph from the values of its inputs; return its outputs."""
    last_use = {name: op for op in graph.ops for name in op.inputs}
    if visit:
        for name, value in values.items():
            visit(name, value)
    for op in graph.ops:
        value = compute(op, [values[n] if n in values else graph.constant(n) for n in op.inputs])
        values[op.output] = value
        if visit:
            visit(op.output, value)
        for name in set(op.inputs) - set(graph.outputs):
            if last_use[name] is op:
                values.pop(name, None)
    return [values[name] for name in graph.outputs]


def check_inputs(graph: ir.Graph, inputs: NDArray[Any], dtype: ir.DType) -> None:
    """Raise an `ExportError` where inputs do not fit a graph of such numbers."""
    _check_input(graph.tensors[graph.inputs[0]], inputs, dtype)


def _check_input(expected: ir.Tensor, inputs: NDArray[Any], dtype: ir.DType) -> None:
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
