"""What every op of an int8 graph computes, integer by integer.

Sums are exact; where a sum becomes int8 again the policy rounds, see `edge.define.rounding`. Values
are int64 arrays, less their zero points only inside an op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.define.rounding import Policy, Scales, policy
from fedkit.core.numerics import Int64s
from fedkit.graph import integers, ir
from fedkit.graph.interpret import check_inputs, run
from fedkit.graph.taps import padded, taps

Int8Array = NDArray[np.int8]
Int8Visitor = Callable[[str, Int8Array], None]
Operands = tuple[Int64s, ...]
Compute = Callable[[Policy, ir.Graph, ir.Op, Operands], Int64s]


def evaluate_int8(
    graph: ir.Graph, inputs: Int8Array, rounding: str = "half_up", visit: Int8Visitor | None = None
) -> Int8Array:
    """Run an int8 graph, integer by integer.

    Args:
        graph: Quantised, with one input and one output.
        inputs: int8 [n, h, w, c] or [n, f], any n, in the graph's layout.
        rounding: A policy of `edge.define.rounding`; the default is what our own targets compute.
        visit: Called with the name and value of each activation as soon as it is known.

    Returns:
        int8 [n, ...], the graph's output.

    Raises:
        ExportError: The graph is not quantised, the inputs do not fit it, or there is no such
            policy.
    """
    check_inputs(graph, inputs, "int8")
    how = policy(rounding)

    def compute_int8(op: ir.Op, operands: list[Int8Array]) -> Int8Array:
        wide = tuple(operand.astype(np.int64) for operand in operands)
        return compute(how, graph, op, wide).astype(np.int8)

    return run(graph, inputs, compute_int8, visit)


def compute(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    """Return an op's result.

    Args:
        policy: How it rounds.
        graph: The graph that the op belongs to, for scales and shapes.
        op: The op.
        operands: Its inputs, int64 [n, ...] and constants in the layouts of `fedkit.graph.ir`.

    Returns:
        int64 [n, ...] within int8.
    """
    value = _OPS[op.kind](policy, graph, op, operands)
    low, high = integers.limits(graph, op)
    if integers.activation(op) == "relu6":
        high = min(127, policy.six(graph, op))
    return np.clip(value, low, high)


def _centred(graph: ir.Graph, op: ir.Op, number: int, operands: Operands) -> Int64s:
    return operands[number] - graph.tensors[op.inputs[number]].zero_point


def _rescaled(
    policy: Policy, graph: ir.Graph, op: ir.Op, sums: Int64s, scale: Scales | float
) -> Int64s:
    out = graph.tensors[op.output]
    return policy.rescale(sums, np.asarray(scale, np.float64), out.scale, op.kind) + out.zero_point


def _weighted(
    product: Callable[[ir.Op, Int64s, Int64s], Int64s],
    policy: Policy,
    graph: ir.Graph,
    op: ir.Op,
    operands: Operands,
) -> Int64s:
    sums = product(op, _centred(graph, op, 0, operands), operands[1]) + operands[2]
    weight = graph.tensors[op.inputs[1]].quantization
    assert weight is not None  # the verifier's rule
    scale = graph.tensors[op.inputs[0]].scale * np.asarray(weight.scale)
    return _rescaled(policy, graph, op, sums, scale)


def _conv2d(op: ir.Op, x: Int64s, w: Int64s) -> Int64s:
    real = _exact_for(w, op.kind)
    values, weights = x.astype(real), w.astype(real)
    parts = (
        np.ascontiguousarray(tap).reshape(-1, x.shape[3]) @ weights[:, i, j].T
        for i, j, tap in taps(values, op.window)
    )
    assert op.window is not None  # the verifier's rule
    shape = len(x), *op.window.output(*x.shape[1:3]), len(w)
    return np.asarray(reduce(np.add, parts), np.int64).reshape(shape)


def _depthwise(op: ir.Op, x: Int64s, w: Int64s) -> Int64s:
    real = _exact_for(w, op.kind)
    values, weights = np.repeat(x.astype(real), w.shape[3] // x.shape[3], axis=3), w.astype(real)
    parts = (tap * weights[0, i, j] for i, j, tap in taps(values, op.window))
    return np.asarray(reduce(np.add, parts), np.int64)


def _linear(op: ir.Op, x: Int64s, w: Int64s) -> Int64s:
    real = _exact_for(w, op.kind)
    return np.asarray(x.astype(real) @ w.T.astype(real), np.int64)


def _exact_for(w: Int64s, kind: ir.Kind) -> type[np.floating[Any]]:
    """Return a type in which no sum of int8 values times these weights is rounded.

    Products of floats are many times as fast as those of integers.
    """
    return np.float32 if integers.accumulator_bound(w, np.zeros(1), kind) < 2**24 else np.float64


def _add(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    left, right = (graph.tensors[name] for name in op.inputs)
    out = graph.tensors[op.output]
    x, y = (_centred(graph, op, number, operands) for number in (0, 1))
    return policy.add(x, y, left, right, out) + out.zero_point


def _concat(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    return np.concatenate(operands, axis=-1)


def _mean(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    x, out = operands[0], graph.tensors[op.output]
    count = x.shape[1] * x.shape[2]
    means = policy.mean(x.sum((1, 2)), count, graph.tensors[op.inputs[0]], out)
    return (means + out.zero_point).reshape(len(x), *out.shape[1:])


def _relu(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    scale = graph.tensors[op.inputs[0]].scale
    return _rescaled(policy, graph, op, _centred(graph, op, 0, operands), scale)


def _avg_pool2d(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    x, tensor = _centred(graph, op, 0, operands), graph.tensors[op.inputs[0]]
    ones = np.ones((1, *x.shape[1:3], 1), np.int64)
    values, present = ([tap for _, _, tap in taps(each, op.window)] for each in (x, ones))
    counts = np.asarray(sum(present))
    assert op.window is not None  # the verifier's rule
    is_whole = op.window.kernel == x.shape[1:3] and not any(op.window.padding)
    return policy.average(values, counts, tensor, is_whole) + tensor.zero_point


def _max_pool2d(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    return np.asarray(
        np.max([tap for _, _, tap in taps(operands[0], op.window, fill=-128)], axis=0)
    )


def _pad(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    return padded(operands[0], op.window, graph.tensors[op.inputs[0]].zero_point)


def _reshape(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    (x,) = operands
    return x.reshape(len(x), *graph.tensors[op.output].shape[1:])


def _flatten_nchw(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    (x,) = operands
    return np.moveaxis(x, 3, 1).reshape(len(x), -1)


_OPS: Mapping[ir.Kind, Compute] = {
    "conv2d": partial(_weighted, _conv2d),
    "depthwise_conv2d": partial(_weighted, _depthwise),
    "linear": partial(_weighted, _linear),
    "relu": _relu,
    "relu6": _relu,
    "add": _add,
    "concat": _concat,
    "mean": _mean,
    "avg_pool2d": _avg_pool2d,
    "max_pool2d": _max_pool2d,
    "pad": _pad,
    "reshape": _reshape,
    "flatten_nchw": _flatten_nchw,
}
"""All kinds but `affine`, which is folded before a graph is quantised."""
