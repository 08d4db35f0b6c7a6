"""The slow, readable definition of what every op of the graph computes.

Float semantics only, so far. A kernel is a loop over its taps; each tap is one shifted view of
the padded input, so no arithmetic hides in index tricks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from edge import ir
from fedkit.errors import ExportError

FloatArray = NDArray[np.float32]
Visitor = Callable[[str, FloatArray], None]


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
    _check(graph, inputs)
    values: dict[str, FloatArray] = {graph.inputs[0]: inputs}
    last_use = {name: op for op in graph.ops for name in op.inputs}
    if visit:
        visit(graph.inputs[0], inputs)
    for op in graph.ops:
        operands = [values[n] if n in values else graph.constant(n) for n in op.inputs]
        value = _activate(op.activation, _OPS[op.kind](op, graph, *operands))
        values[op.output] = value
        if visit:
            visit(op.output, value)
        for name in set(op.inputs) - set(graph.outputs):
            if last_use[name] is op:
                values.pop(name, None)
    return values[graph.outputs[0]]


def _check(graph: ir.Graph, inputs: FloatArray) -> None:
    expected = graph.tensors[graph.inputs[0]]
    if expected.dtype != "float32":
        raise ExportError("the interpreter runs float graphs only; evaluate before `quantize`")
    if inputs.shape[1:] != expected.shape[1:] or inputs.dtype != np.float32:
        raise ExportError(
            f"inputs are {inputs.dtype} {inputs.shape}; the graph takes float32 "
            f"[n, {', '.join(map(str, expected.shape[1:]))}]"
        )


def _activate(activation: ir.Activation, x: FloatArray) -> FloatArray:
    if activation == "relu":
        return np.maximum(x, np.float32(0))
    if activation == "relu6":
        return np.clip(x, np.float32(0), np.float32(6))
    return x


def _padded(x: FloatArray, window: ir.Window, value: float) -> FloatArray:
    top, bottom, left, right = window.padding
    if not any(window.padding):
        return x
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def _taps(
    x: FloatArray, window: ir.Window | None, fill: float = 0.0
) -> Iterator[tuple[int, int, FloatArray]]:
    """Yield (kernel row, kernel column, what that tap reads: [n, out h, out w, c])."""
    assert window is not None  # the verifier's rule
    rows, columns = window.output(x.shape[1], x.shape[2])
    (stride_y, stride_x), (dilation_y, dilation_x) = window.stride, window.dilation
    x = _padded(x, window, fill)
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            top, left = i * dilation_y, j * dilation_x
            end_y, end_x = top + (rows - 1) * stride_y + 1, left + (columns - 1) * stride_x + 1
            yield i, j, x[:, top:end_y:stride_y, left:end_x:stride_x]


def _conv2d(op: ir.Op, graph: ir.Graph, x: FloatArray, w: FloatArray, b: FloatArray) -> FloatArray:
    parts = (tap @ w[:, i, j].T for i, j, tap in _taps(x, op.window))
    return _sum(parts) + b


def _depthwise(
    op: ir.Op, graph: ir.Graph, x: FloatArray, w: FloatArray, b: FloatArray
) -> FloatArray:
    x = np.repeat(x, w.shape[3] // x.shape[3], axis=3)
    return _sum(tap * w[0, i, j] for i, j, tap in _taps(x, op.window)) + b


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


def _mean(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    return _reshape(op, graph, x.mean(axis=(1, 2), dtype=np.float32))


def _avg_pool2d(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    total = _sum(tap.copy() for _, _, tap in _taps(x, op.window))
    ones = np.ones((1, *x.shape[1:3], 1), np.float32)
    return total / _sum(tap.copy() for _, _, tap in _taps(ones, op.window))


def _max_pool2d(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    taps = _taps(x, op.window, fill=-np.inf)
    result = next(taps)[2]
    for _, _, tap in taps:
        result = np.maximum(result, tap)
    return result


def _pad(op: ir.Op, graph: ir.Graph, x: FloatArray) -> FloatArray:
    assert op.window is not None  # the verifier's rule
    return _padded(x, op.window, 0.0)


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
    "mean": _mean,
    "avg_pool2d": _avg_pool2d,
    "max_pool2d": _max_pool2d,
    "pad": _pad,
    "reshape": _reshape,
    "flatten_nchw": _flatten_nchw,
}
