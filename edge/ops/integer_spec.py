"""What a kind of op is in integers: one frozen row, beside the function that defines it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.define.rounding import Policy, Scales, Summed
from edge.ops.builders import CCompiler, FpgaCompiler, OnnxFile, TfliteFile
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from fedkit.graph.ops.registry import WEIGHTED

Operands = tuple[Int64s, ...]
Exact = Callable[[Policy, ir.Graph, ir.Op, Operands], Int64s]
"""Takes how to round, the op and its operands, int64 [n, ...] within int8 and constants in the
layouts of the graph; gives its result before it is clipped to int8."""

Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Link:
    """Channel `inputs[i]` of `name` is read by channel `outputs[i]` of an op's output."""

    name: str
    inputs: Indices
    outputs: Indices


@dataclass(frozen=True)
class Cost:
    """Counts for one example.

    Attributes:
        channels: Outputs of all weighted ops: filters and rows.
        parameters: Weights and biases, zeros included.
        macs: Multiply-accumulates, zeros and padding included.
        kept_weights: Weights that are not zero.
        kept_macs: Multiply-accumulates of those, padding included.
    """

    channels: int
    parameters: int
    macs: int
    kept_weights: int
    kept_macs: int


def cost_of_weights(graph: ir.Graph, op: ir.Op) -> Cost:
    """Count the weights, each of which meets each pixel of the output once; nothing without."""
    if op.kind not in WEIGHTED:
        return Cost(0, 0, 0, 0, 0)
    weight, bias = (graph.constant(name) for name in op.inputs[1:])
    kept, uses = np.count_nonzero(weight), math.prod(graph.tensors[op.output].shape[1:-1])
    return Cost(len(bias), weight.size + len(bias), weight.size * uses, kept, kept * uses)


@dataclass(frozen=True)
class IntegerSpec:
    """A kind of op of an int8 graph.

    Attributes:
        kind: One of `fedkit.graph.ops.registry.SPECS`.
        exact: What it computes, integer by integer.
        links: Which channels of its inputs the channels of its output stand for.
        tflite: Writes it; None if the target has no form of it, as the following.
        onnx: As `tflite`.
        not_onnx: Gives why this one has no form of ONNX, or nothing.
        c99: Adds its calls of kernels.
        fpga: Gives its steps.
        cost: What it asks for, in a float graph too.
        takes_whole_offset: Whether its output's scale is widened until zero point * input scale /
            output scale is whole, which a kernel of TFLite cuts off.
        slimmed: (op, which channels of its input are left, which of its output) -> what it is then.
    """

    kind: ir.Kind
    exact: Exact
    links: Callable[[ir.Graph, ir.Op], list[Link]]
    tflite: Callable[[TfliteFile, ir.Op], None] | None = None
    onnx: Callable[[OnnxFile, ir.Op], None] | None = None
    c99: Callable[[CCompiler, ir.Op], None] | None = None
    fpga: Callable[[FpgaCompiler, ir.Op], Iterator[Any]] | None = None
    cost: Callable[[ir.Graph, ir.Op], Cost] = cost_of_weights
    not_onnx: Callable[[ir.Op], str] = lambda op: ""
    takes_whole_offset: bool = False
    slimmed: Callable[[ir.Op, Flags, Flags], ir.Op] = lambda op, inputs, outputs: op


# Arithmetic


def centred(graph: ir.Graph, op: ir.Op, number: int, operands: Operands) -> Int64s:
    """Return an operand less its zero point."""
    return operands[number] - graph.tensors[op.inputs[number]].zero_point


def rescaled(
    policy: Policy, graph: ir.Graph, op: ir.Op, sums: Int64s, scale: Scales | float, of: Summed
) -> Int64s:
    """Return sums of that scale as integers of the output."""
    out = graph.tensors[op.output]
    return policy.rescale(sums, np.asarray(scale, np.float64), out.scale, of) + out.zero_point


def is_plain(graph: ir.Graph, op: ir.Op) -> bool:
    """Whether an op reads two activations of one shape."""
    left, right = (graph.tensors[name] for name in op.inputs)
    return left.shape == right.shape and left.data is None and right.data is None


# Links


def same_channels(graph: ir.Graph, op: ir.Op) -> list[Link]:
    """Link each channel with that of the same number in all inputs."""
    channels = np.arange(graph.tensors[op.output].shape[-1])
    return [Link(name, channels, channels) for name in op.inputs]


def broadcast_channels(graph: ir.Graph, op: ir.Op) -> list[Link]:
    """Link each channel with that of the same number, the only one of an input with all."""
    channels = np.arange(graph.tensors[op.output].shape[-1])
    activations = [name for name in op.inputs if graph.tensors[name].data is None]
    return [
        Link(name, np.minimum(channels, graph.tensors[name].shape[-1] - 1), channels)
        for name in activations
    ]


def same_elements(
    graph: ir.Graph, op: ir.Op, order: Callable[[NDArray[Any]], NDArray[Any]]
) -> list[Link]:
    """Link the channels that hold the same element, which `order` brings into its place."""
    x, out = (graph.tensors[name].shape for name in (op.inputs[0], op.output))
    elements = np.arange(math.prod(x))
    inputs = order((elements % x[-1]).reshape(x)).ravel()
    pairs = np.unique(np.stack([inputs, elements % out[-1]]), axis=1)
    return [Link(op.inputs[0], pairs[0], pairs[1])]
