"""The slow, readable definition of what a float graph computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.taps import padded, taps

FloatArray = NDArray[np.float32]
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
    return _activate(op.activation, _OPS[op.kind](op, graph, *operands))


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


def _activate(activation: ir.Activation, x: FloatArray) -> FloatArray:
    if activation == "relu":
        return np.maximum(x, np.float32(0))
    if activation == "relu6":
        return np.clip(x, np.float32(0), np.float32(6))
    return x


def _conv2d(op: ir.Op, graph: ir.Graph, x: FloatArray, w: FloatArray, b: FloatArray) -> FloatArray:
    parts = (tap @ w[:, i, j].T for i, j, tap in taps(x, op.window))
    return _sum(parts) + b


def _depthwise(
    op: ir.Op, graph: ir.Graph, x: FloatArray, w: FloatArray, b: FloatArray
) -> FloatArray:
    x = np.repeat(x, w.shape[3] // x.shape[3], axis=3)
    return _sum(tap * w[0, i, j] for i, j, tap in taps(x, op.window)) + b


def _sum(parts: Iterator[FloatArray]) -> FloatArray:
    total = next(parts)
    for part in parts:
        total += part
    return total


def _linear(op: ir.Op, graph: ir.Graph, x: FloatArray, w: FloatArray, b: FloatArray) -> FloatArray:
    return x @ w.T + b


def _affine(
    op: ir.Op, graph: ir.Graph, x: FloatArray, scale: FloatArray, shift: FloatArray
) -> FloatArray:
    return x * scale + shift


def _relu(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    return _activate("relu", x)


def _relu6(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    return _activate("relu6", x)


def _add(op: ir.Op, graph: ir.Graph, x: FloatArray, y: FloatArray) -> FloatArray:
    return x + y


def _concat(op: ir.Op, graph: ir.Graph, *parts: FloatArray) -> FloatArray:
    return np.concatenate(parts, axis=-1)


def _mean(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    return _reshape(op, graph, x.mean(axis=(1, 2), dtype=np.float32))


def _avg_pool2d(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    total = _sum(tap.copy() for _, _, tap in taps(x, op.window))
    ones = np.ones((1, *x.shape[1:3], 1), np.float32)
    return total / _sum(tap.copy() for _, _, tap in taps(ones, op.window))


def _max_pool2d(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    windows = taps(x, op.window, fill=-np.inf)
    result = next(windows)[2]
    for _, _, tap in windows:
        result = np.maximum(result, tap)
    return result


def _pad(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    return padded(x, op.window, 0.0)


def _reshape(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    return x.reshape(len(x), *graph.tensors[op.output].shape[1:])


def _flatten_nchw(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    return np.moveaxis(x, 3, 1).reshape(len(x), -1)


_OPS: Mapping[ir.Kind, Callable[..., FloatArray]] = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise,
    "linear": _linear,
    "affine": _affine,
    "relu": _relu,
    "relu6": _relu6,
    "add": _add,
    "concat": _concat,
    "mean": _mean,
    "avg_pool2d": _avg_pool2d,
    "max_pool2d": _max_pool2d,
    "pad": _pad,
    "reshape": _reshape,
    "flatten_nchw": _flatten_nchw,
}
