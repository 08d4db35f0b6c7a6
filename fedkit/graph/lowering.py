"""What every reader shares: ops under construction, their rules, and diagnostics.

A reader (`from_torch` for torch modules, `from_onnx` for ONNX files) reads its own kind of node
and calls the method below that makes the op. Constants come in the layouts that torch and ONNX
have in common: NCHW, convolution weights [out, in per group, kernel height, kernel width].
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, NoReturn, TypeVar

import numpy as np

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.operands import ConstantOperand as ConstantOperand
from fedkit.graph.operands import Unsupported as Unsupported
from fedkit.graph.operands import activation as activation
from fedkit.graph.operands import constant as constant
from fedkit.graph.operands import require as require
from fedkit.graph.operands import require_small as require_small
from fedkit.graph.ops.functions import Bounds, LeakySlope
from fedkit.graph.ops.registry import LAYERS
from fedkit.graph.verify import verify

_MOST_REASONS = 8  # in one message
_SHAPE = re.compile(r"\([\d, ]+\)")

SERIES = (
    "a series [n, channels, length] can be given as [n, channels, 1, length], with Conv2d and "
    "kernels of (1, k) in place of Conv1d"
)
"""What to do with inputs that are not images."""

LOGITS: Mapping[str, str] = {
    "Softmax": "argmax is the same",
    "LogSoftmax": "argmax is the same",
}
"""What makes probabilities of logits -> what these tell without it."""

_PLURALS = {"weight": "weights", "bias": "biases"}

Operator = Literal["add", "sub", "mul", "div"]

Node = TypeVar("Node")
"""One operation of the model that is read."""


def refuse_probabilities(what: str, is_last: bool) -> NoReturn:
    """Raise `Unsupported` for one of `LOGITS`, which as the last op is not needed."""
    way = f"leave it out: the artifact gives logits, {LOGITS[what]}"
    raise Unsupported(f"{what} at the end; {way}" if is_last else f"{what} is not supported")


def require_channels(what: str, axis: int, rank: int) -> None:
    """Raise `Unsupported` unless an axis of the model is that of channels or features."""
    reason = f"a {what} over dimension {axis}; dimension 1, channels or features, can be"
    require(axis % rank == 1, reason)


def nhwc(shape: ir.Shape) -> ir.Shape:
    """Return [n, c, h, w] as [n, h, w, c]."""
    n, c, h, w = shape
    return n, h, w, c


def graph_shape(shape: ir.Shape) -> ir.Shape:
    """Return the shape that a value of an NCHW model has in the graph."""
    if len(shape) == 4:
        return nhwc(shape)
    if len(shape) == 2:
        return shape
    raise Unsupported(f"a value of shape {shape}; only [n, c, h, w] and [n, features] exist here")


def _model_shape(shape: ir.Shape) -> ir.Shape:
    """Return the shape that one example of a value of the graph has in an NCHW model."""
    return (shape[3], shape[1], shape[2]) if len(shape) == 4 else shape[1:]


def order_is_free(shape: ir.Shape) -> bool:
    """Whether NHWC and NCHW put the elements in the same order."""
    return len(shape) != 4 or shape[1] * shape[2] == 1 or shape[3] == 1


def reaching(x: ir.Tensor, out: ir.Shape, window: ir.Window, before: Sequence[int]) -> ir.Window:
    """Pad `window` by `before` at (top, left), and at the end by what its steps reach.

    Where the stride leaves a remainder, a model may pad more at the bottom and right than it
    reads; without that excess the padding often is the one that TFLite calls "SAME".
    """
    pads: list[int] = []
    for axis, first in enumerate(before):
        reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1
        needed = (out[1 + axis] - 1) * window.stride[axis] + reach
        pads += [first, max(0, needed - x.shape[1 + axis] - first)]
    require_small((1, x.shape[1] + sum(pads[:2]), x.shape[2] + sum(pads[2:]), x.shape[3]))
    return replace(window, padding=(pads[0], pads[1], pads[2], pads[3]))


@dataclass
class Lowering(ABC, Generic[Node]):
    """What has been lowered so far; a reader says what it calls its nodes.

    Attributes:
        trains: Whether norms stay what they are and parameters keep their names, as a training plan
            needs it. For exports they are folded.
        parameters: Name of each constant that is a parameter or statistic of the model, by its id.
    """

    trains: bool = False
    parameters: dict[int, str] = field(default_factory=dict)
    tensors: dict[str, ir.Tensor] = field(default_factory=dict)
    ops: list[ir.Op] = field(default_factory=list)
    diagnostics: list[tuple[str, str]] = field(default_factory=list)
    """Where, and why it cannot be lowered."""

    @abstractmethod
    def name_of(self, node: Node) -> str:
        """Return the name for what a node computes."""

    @abstractmethod
    def source_of(self, node: Node) -> str:
        """Return where a node comes from, for messages."""

    @abstractmethod
    def shape_of(self, node: Node) -> ir.Shape:
        """Return the shape that a node's result has in the graph."""

    def activation(self, name: str, shape: ir.Shape) -> ir.Tensor:
        """Add an activation."""
        return self._add(ir.Tensor(name, shape))

    def constant(self, name: str, value: Any, parameter: str = "") -> ir.Tensor:
        """Add a constant, as float32."""
        with np.errstate(over="ignore"):  # `verify` names what became infinite
            data = np.ascontiguousarray(value, np.float32)
        return self._add(ir.Tensor(name, data.shape, "float32", data, parameter=parameter))

    def _add(self, tensor: ir.Tensor) -> ir.Tensor:
        name = ir.unused_name(tensor.name, self.tensors)
        self.tensors[name] = replace(tensor, name=name)
        return self.tensors[name]

    def op(
        self,
        kind: ir.Kind,
        node: Node,
        inputs: Sequence[ir.Tensor],
        shape: ir.Shape | None = None,
        window: ir.Window | None = None,
        suffix: str = "",
        attributes: ir.Attributes | None = None,
    ) -> ir.Tensor:
        """Add an op; its output has the shape of the node's result unless told otherwise."""
        shape = self.shape_of(node) if shape is None else shape
        require_small(shape)
        out = self.activation(self.name_of(node) + suffix, shape)
        names = tuple(tensor.name for tensor in inputs)
        source = self.source_of(node)
        made = ir.Op(kind, names, (out.name,), window, source=source, attributes=attributes)
        self.ops.append(made)
        return out

    def raise_diagnostics(self) -> None:
        """Refuse the model, with all diagnostics, if there are any; equal reasons are one line.

        Raises:
            ExportError: There are.
        """
        if reasons := self.reasons():
            listed = "\n  ".join(reasons)
            raise ExportError(
                f"{len(self.diagnostics)} op(s) of the model cannot be exported:\n  {listed}\n"
                f"replace them by supported layers: {', '.join(LAYERS)}"
            )

    def reasons(self) -> list[str]:
        """Return a line for each reason that was found, with the places where it holds."""
        places: dict[str, list[str]] = {}
        first: dict[str, str] = {}
        for where, reason in self.diagnostics:
            kind = _SHAPE.sub("", reason)  # the same of another shape is the same reason
            places.setdefault(kind, []).append(where)
            first.setdefault(kind, reason)
        lines = [f"{_listed(where)}: {first[kind]}" for kind, where in places.items()]
        if len(lines) > _MOST_REASONS:
            lines[_MOST_REASONS - 1 :] = [f"and {len(lines) - _MOST_REASONS + 1} other reasons"]
        return lines

    def graph(self, inputs: tuple[str, ...], output: Any) -> ir.Graph:
        """Return the graph, verified.

        Raises:
            ExportError: No artifact can have such an output, or a rule is broken.
        """
        name = _output(output).name
        if not self.ops:
            raise ExportError("the model computes nothing: its output is its input")
        graph = ir.Graph(self.tensors, tuple(self.ops), inputs, (name,))
        verify(graph)
        return graph

    def conv2d(
        self,
        node: Node,
        x: ir.Tensor,
        weight: Any,
        bias: Any,
        groups: int,
        window: ir.Window,
        before: Sequence[int] = (0, 0),
    ) -> ir.Tensor:
        """Add a convolution, plain or depthwise, with weights [out, in per group, h, w]."""
        cin, out = x.shape[3], self.shape_of(node)
        kind: ir.Kind = "conv2d" if groups == 1 else "depthwise_conv2d"
        if groups not in (1, cin):
            require(self.trains, f"conv2d with {groups} groups; 1 or one per channel can be")
            kind = "grouped_conv2d"
        order = (1, 2, 3, 0) if kind == "depthwise_conv2d" else (0, 2, 3, 1)
        operands = self._operands(node, x, weight, bias, order)
        return self.op(kind, node, operands, out, reaching(x, out, window, before))

    def linear(self, node: Node, x: ir.Tensor, weight: Any, bias: Any) -> ir.Tensor:
        """Add a linear layer with weights [out, in]."""
        return self.op("linear", node, self._operands(node, x, weight, bias, (0, 1)))

    def _operands(
        self, node: Node, x: ir.Tensor, weight: Any, bias: Any, order: Sequence[int]
    ) -> list[ir.Tensor]:
        """Return an activation, its weights with their axes in that order, and a bias."""
        weights = np.transpose(constant(weight), order)
        zeros = np.zeros(self.shape_of(node)[-1])
        return [
            x,
            self._named(node, "weight", weight, weights),
            self._or(node, "bias", bias, zeros),
        ]

    def _or(self, node: Node, what: str, value: Any, instead: ir.Array) -> ir.Tensor:
        """Add a constant of an op that may do without it."""
        array = instead if value is None else constant(value, _PLURALS[what])
        return self._named(node, what, value, array)

    def _named(self, node: Node, what: str, value: Any, array: ir.Array) -> ir.Tensor:
        """Add a constant of an op, an array that is made of a value of the model."""
        parameter = self.parameters.get(id(value), "")
        return self.constant(f"{self.name_of(node)}.{what}", array, parameter)

    def affine(self, node: Node, x: ir.Tensor, scale: ir.Array, shift: ir.Array) -> ir.Tensor:
        """Add a scale and a shift per channel."""
        name = self.name_of(node)
        scaled = self.constant(f"{name}.scale", scale), self.constant(f"{name}.shift", shift)
        return self.op("affine", node, [x, *scaled])

    def batch_norm(
        self,
        node: Node,
        x: ir.Tensor,
        statistics: tuple[Any, Any],
        eps: float,
        weight: Any,
        bias: Any,
        absolute: bool = False,
    ) -> ir.Tensor:
        """Add a batch norm, which in evaluation is an affine op.

        Args:
            node: Where it stands.
            x: What it reads.
            statistics: Running mean and variance.
            eps: Added to the variance, or to its root.
            weight: Or None.
            bias: Or None.
            absolute: Whether it is an L1 norm, which adds `eps` to the root.
        """
        mean, variance = (constant(v, "statistics") for v in statistics)
        if self.trains:
            operands = [
                x,
                self._named(node, "mean", statistics[0], mean),
                self._named(node, "variance", statistics[1], variance),
                self._or(node, "weight", weight, np.ones(len(mean))),
                self._or(node, "bias", bias, np.zeros(len(mean))),
            ]
            return self.op(
                "l1_batch_norm" if absolute else "batch_norm",
                node,
                operands,
                attributes=ir.Epsilon(eps),
            )
        mean, variance = mean.astype(np.float64), variance.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):  # `verify` names the result
            scale = 1 / (np.sqrt(variance) + eps if absolute else np.sqrt(variance + eps))
            scale = scale if weight is None else scale * constant(weight)
            shift = -mean * scale if bias is None else constant(bias) - mean * scale
        return self.affine(node, x, scale, shift)

    def layer_norm(
        self,
        node: Node,
        x: ir.Tensor,
        shape: Sequence[int],
        eps: float,
        weight: Any,
        bias: Any,
        absolute: bool = False,
    ) -> ir.Tensor:
        """Add a layer norm over a whole example, of shape [c, h, w] or [features] in the model."""
        require(self.trains, "a layer norm; batch norms can be")
        whole = _model_shape(x.shape)
        require(
            tuple(shape) == whole,
            f"a layer norm over {tuple(shape)}; it must be over a whole example, {whole}",
        )
        order = (1, 2, 0) if len(whole) == 3 else (0,)
        operands = [x]
        for what, value, instead in (("weight", weight, np.ones), ("bias", bias, np.zeros)):
            array = instead(whole) if value is None else constant(value, _PLURALS[what])
            operands.append(self._named(node, what, value, np.transpose(array, order)))
        return self.op(
            "l1_layer_norm" if absolute else "layer_norm",
            node,
            operands,
            attributes=ir.Epsilon(eps),
        )

    def clamp(self, node: Node, x: ir.Tensor, low: float | None, high: float | None) -> ir.Tensor:
        """Add the ReLU, ReLU6 or other clamp; None means no bound."""
        if low == 0 and high in (None, 6):
            return self.op("relu6" if high else "relu", node, [x])
        ends = [None if bound is None else float(bound) for bound in (low, high)]
        known = [bound for bound in ends if bound is not None]
        fits = known == sorted(known) and all(map(math.isfinite, known))
        require(bool(known) and fits, f"a clamp to [{low}, {high}]; the ends must be in order")
        return self.op("clip", node, [x], attributes=Bounds(ends[0], ends[1]))

    def arithmetic(self, node: Node, operator: Operator, left: Any, right: Any) -> ir.Tensor:
        """Add a sum, difference, product or quotient of activations and constants.

        A number, or one per channel, becomes part of what is before it where that is linear.
        """
        if isinstance(left, ir.Tensor) and isinstance(right, ir.Tensor):
            require(operator != "div", "a division of activations")
            return self._pair(operator, node, left, right)
        swapped = not isinstance(left, ir.Tensor)
        x, value = activation(right if swapped else left), left if swapped else right
        if isinstance(value, ir.Tensor):
            raise ConstantOperand("an operand is a constant where an activation is expected")
        y = np.asarray(constant(value), np.float64)
        require(operator != "div" or not swapped, "a division by an activation")
        if operator == "div":
            require(bool(y.all()), "a division by zero")
            operator, y = "mul", 1 / y
        if not y.ndim and y == (operator == "mul") and not (swapped and operator == "sub"):
            return x
        if self.trains:
            raise ConstantOperand("an operand is a constant where an activation is expected")
        channels = _per_channel(x, y)
        if channels is None:
            operand = self.constant(f"{self.name_of(node)}.operand", self._as_operand(node, x, y))
            return self._pair(operator, node, *((operand, x) if swapped else (x, operand)))
        one, none = np.ones_like(channels), np.zeros_like(channels)
        if operator == "mul":
            return self.affine(node, x, channels, none)
        if operator == "add":
            return self.affine(node, x, one, channels)
        return self.affine(node, x, *((-one, channels) if swapped else (one, -channels)))

    def prelu(self, node: Node, x: ir.Tensor, slopes: Any) -> ir.Tensor:
        """Add a leaky ReLU; with a slope per channel as a * x + (1 - a) * relu(x)."""
        values = np.asarray(constant(slopes, "slopes"), np.float64).ravel()
        require(len(values) in (1, x.shape[-1]), f"{len(values)} slopes for {x.shape[-1]} channels")
        if (values == values[0]).all():
            slope = LeakySlope(float(values[0]))
            return self.op("leaky_relu", node, [x], attributes=slope)
        require(not self.trains, "a slope per channel; one for all can be")
        positive = self.op("relu", node, [x], suffix=".positive")
        zeros = np.zeros_like(values)
        terms = self.affine(node, x, values, zeros), self.affine(node, positive, 1 - values, zeros)
        return self.op("add", node, terms)

    def power(self, node: Node, x: ir.Tensor, exponent: Any) -> ir.Tensor:
        """Add x to the power of a number."""
        value = np.asarray(exponent)
        require(value.size == 1 and value == 2, f"a power of {value.tolist()}; 2 can be")
        return self.op("mul", node, [x, x])

    def _pair(self, kind: ir.Kind, node: Node, x: ir.Tensor, y: ir.Tensor) -> ir.Tensor:
        ranks = len(x.shape) == len(y.shape)
        sizes = zip(x.shape, y.shape, strict=False)
        agree = ranks and all(a == b or 1 in (a, b) for a, b in sizes)
        what = {"add": "an addition", "sub": "a difference", "mul": "a product"}[kind]
        require(agree, f"{what} of shapes {x.shape} and {y.shape}; they must agree")
        return self.op(kind, node, [x, y])

    def _as_operand(self, node: Node, x: ir.Tensor, y: ir.Array) -> ir.Array:
        """Return a constant that is broadcast against NCHW, in the layout of the graph."""
        rank = len(x.shape)
        require(y.ndim <= rank, f"a constant of shape {y.shape} beside a value of rank {rank}")
        whole = y.reshape((1,) * (rank - y.ndim) + y.shape)
        require(len(whole) == 1, f"a constant of shape {y.shape}, another for each example")
        laid = np.moveaxis(whole, 1, 3) if rank == 4 else whole
        widened = np.broadcast_shapes(laid.shape, x.shape)
        require(widened == x.shape, f"a constant of shape {y.shape}, which widens {x.shape}")
        return laid

    def avg_pool2d(
        self,
        node: Node,
        x: ir.Tensor,
        window: ir.Window,
        before: Sequence[int],
        counts_padding: bool,
    ) -> ir.Tensor:
        """Add an average pooling; padding that counts becomes an op of its own."""
        out = self.shape_of(node)
        padded = reaching(x, out, window, before)
        if counts_padding and any(padded.padding):
            pad = ir.Window(padding=padded.padding)
            shape = (1, *pad.output(x.shape[1], x.shape[2]), x.shape[3])
            x, padded = self.op("pad", node, [x], shape, pad, suffix=".pad"), window
        return self.op("avg_pool2d", node, [x], out, padded)

    def max_pool2d(
        self, node: Node, x: ir.Tensor, window: ir.Window, before: Sequence[int]
    ) -> ir.Tensor:
        """Add a max-pooling."""
        dilation = window.dilation
        require(dilation == (1, 1), f"max_pool2d with dilation {dilation}; 1 can be")
        out = self.shape_of(node)
        return self.op("max_pool2d", node, [x], out, reaching(x, out, window, before))

    def pad(
        self, node: Node, x: ir.Tensor, mode: str, value: float, amounts: Sequence[int]
    ) -> ir.Tensor:
        """Add a padding by zeros at (top, bottom, left, right)."""
        is_zero = mode == "constant" and value == 0
        require(is_zero, f"{mode} padding with {value}; zeros can be")
        top, bottom, left, right = amounts
        require(
            min(amounts) >= 0,
            f"padding by {(top, bottom, left, right)}; height and width can grow, and nothing "
            f"shrink",
        )
        if not any(amounts):
            return x
        return self.op("pad", node, [x], window=ir.Window(padding=(top, bottom, left, right)))

    def reshape(self, node: Node, x: ir.Tensor) -> ir.Tensor:
        """Add what brings `x` into the shape of the node's result, if anything must."""
        out = self.shape_of(node)
        if x.shape == out:
            return x
        if order_is_free(x.shape) and order_is_free(out):
            return self.op("reshape", node, [x], out)
        is_flatten = len(x.shape) == 4 and out == (1, math.prod(x.shape))
        require(
            is_flatten, f"a reshape of {x.shape} to {out} (NHWC); flatten to [n, features] can be"
        )
        return self.op("flatten_nchw", node, [x], out)


def _per_channel(x: ir.Tensor, value: ir.Array) -> ir.Array | None:
    """Return a constant that is broadcast against NCHW as one per channel; None if it is not."""
    rank, count = len(x.shape), x.shape[-1]
    shape = (1,) * (rank - value.ndim) + value.shape
    is_one = value.ndim <= rank and math.prod(shape) in (1, count) and shape[1] == value.size
    return np.broadcast_to(value.reshape(-1), count) if is_one else None


def _listed(places: Sequence[str]) -> str:
    more = len(places) - 1
    return places[0] if not more else f"{places[0]} and {more} other{'s' * (more > 1)}"


def _output(value: Any) -> ir.Tensor:
    if not isinstance(value, ir.Tensor):
        raise ExportError("the model's output does not depend on its input; nothing to export")
    if len(value.shape) == 4 and not order_is_free(value.shape):
        raise ExportError(
            f"the model returns a feature map, {value.shape} in NHWC; an artifact returns "
            f"[n, classes]: end the model with a pooling or flatten and a linear layer"
        )
    return value
