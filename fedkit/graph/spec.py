"""What a kind of op is in the float graph: one frozen row, beside the function that defines it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from fedkit.graph import ir
from fedkit.graph.elements import Moved

Random = np.random.Generator
Real = Callable[..., ir.FloatArray]
"""Takes the op, its graph and its operands, float32 [n, ...]; gives its result."""

Scale = Literal["kept", "rescaled", "product", "free"] | ir.Quantization
"""How the result of an integer op is quantised: exactly as all inputs; by a scale of its own, which
is above 1/256 of theirs; by one that is at least twice the product of theirs; by any scale; or
always the same."""


class ModelReader(Protocol):
    """What reads a model, of torch or ONNX, while it does."""

    @property
    def trains(self) -> bool:
        """Whether it reads for a training plan: norms stay, parameters keep their names."""

    def op(
        self,
        kind: ir.Kind,
        node: Any,
        inputs: Sequence[ir.Tensor],
        shape: ir.Shape | None = None,
        window: ir.Window | None = None,
        suffix: str = "",
        attributes: ir.Attributes | None = None,
    ) -> ir.Tensor:
        """Add an op; its output has the shape of the node's result unless told otherwise."""

    def constant(self, node: Any, what: str, array: Any, value: Any = None) -> ir.Tensor:
        """Add a constant of an op, as float32, that is made of a value of the model, or of none."""

    def shape_of(self, node: Any) -> ir.Shape:
        """Return the shape that a node's result has in the graph."""

    def ranks_of(self, node: Any) -> set[int]:
        """Return how many dimensions the model gives the activations that a node reads.

        In the graph a series of the model has those of a map.
        """

    def places(self, node: Any, dropped: int | None = None) -> Mapping[int, Sequence[int]]:
        """Return what a node that computes nothing takes of its first operand.

        Args:
            node: Of torch.
            dropped: The dimension that its result lacks, of which it takes one place.

        Returns:
            Dimension of [n, c, h, w] or [n, f], but the first -> the places that it takes, in
            order.

        Raises:
            Unsupported: It depends on the input, mixes dimensions or moves examples.
        """

    def learns(self, value: Any) -> bool:
        """Whether a constant of the model is a parameter, or computed from some."""

    def shown_by(self, value: Any) -> Any:
        """Return the parameter that a constant shows in another shape, or the constant itself."""

    def arranged(self, node: Any) -> Moved:
        """Return which elements of its first operand a node that computes nothing gives.

        Raises:
            Unsupported: It moves examples.
        """

    def is_last(self, node: Any) -> bool:
        """Whether nothing but a change of shape comes behind a node of a model that trains."""


class OnnxNode(Protocol):
    """A node of an ONNX file; `fedkit.graph.operands` has what asks more of it."""

    @property
    def opset(self) -> int:
        """Of the file."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the output that is read, as the file has it; None if that is unknown before a run."""

    @property
    def number(self) -> int:
        """Which of its outputs is read now."""

    @property
    def shapes(self) -> Sequence[tuple[int, ...]]:
        """Of its outputs, as the file has them."""

    @property
    def inputs(self) -> Sequence[ir.Tensor | Moved | ir.Array | None]:
        """Its operands; a constant is an array, and what is left out None.

        None is `Moved` but where a node arranges values itself.
        """

    def operand(self, index: int) -> ir.Tensor | Moved | ir.Array | None:
        """Return an operand, None if it is left out or behind the last."""

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute."""

    def setting(self, name: str, index: int, default: Any = None) -> Any:
        """Return what older opsets give as an attribute and newer ones as a constant input."""


Aten = Callable[[ModelReader, Any, Mapping[str, Any]], ir.Tensor | Moved]
"""Takes the reader, the node, and name of an argument -> its value: an `ir.Tensor`, or a constant.
`fedkit.graph.operands` has what refuses those that cannot be. An operator may become ops of several
kinds; each of their rows has it then, with the same reader."""

Onnx = Callable[[ModelReader, OnnxNode], ir.Tensor | Moved]


@dataclass(frozen=True)
class Weights:
    """How the weights lie of an op that reads (activation, weight, bias).

    Channels are read in groups of as many: the first outputs read the first group, and so on.

    Attributes:
        axis: Of the output channels. On axis 0 the last axis holds the channels of a group; on axis
            3 every group is one channel.
        mixes: Whether there is one group, so that every output reads every channel.
    """

    axis: Literal[0, 3]
    mixes: bool = False

    def groups(self, channels: int, shape: ir.Shape) -> int:
        """Return how many groups so many channels are in, at least 1.

        Args:
            channels: Of the input.
            shape: Of the weights; it may not fit.
        """
        of_group = shape[-1] if self.axis == 0 else 1
        return 1 if self.mixes else max(1, channels // max(1, of_group))

    def shape(self, channels: int, given: ir.Shape, kernel: Sequence[int]) -> ir.Shape:
        """Return what the shape of weights must be, by one that may not fit.

        Args:
            channels: Of the input.
            given: The shape that they have.
            kernel: Height and width of the window; nothing without one.
        """
        groups, out = self.groups(channels, given), given[self.axis]
        if self.axis == 3:
            return (1, *kernel, groups * max(1, out // groups))
        fits = channels % groups == 0 and out % groups == 0
        return (out, *kernel, channels // groups if fits else channels)

    def by_channel(self, weight: ir.Array) -> ir.Array:
        """Return them as [out, kernel height, kernel width, channels that one output reads]."""
        if self.axis == 3:
            return weight.transpose(3, 1, 2, 0)
        return weight if weight.ndim == 4 else weight[:, None, None]

    def laid(self, by_channel: ir.Array, shape: ir.Shape) -> ir.Array:
        """Undo `by_channel`."""
        if self.axis == 0:
            return by_channel.reshape(shape)
        return by_channel.reshape(shape[3], *shape[1:3], 1).transpose(3, 1, 2, 0)


def same_shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    """Return the shape of the first input."""
    return graph.tensors[op.inputs[0]].shape


def broadcast_shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    """Return the shape of what two inputs are together, each repeated where it has the size 1."""
    shapes = [graph.tensors[name].shape for name in op.inputs]
    return tuple(map(max, *shapes))


def broadcast_operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    """Return the shape of the second input: any that goes with the first."""
    left, right = shapes
    fits = len(left) == len(right) and all(
        a == b or 1 in (a, b) for a, b in zip(left, right, strict=True)
    )
    return [right if fits else left]


def window_shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    """Return the shape of what a window makes of each channel."""
    _, height, width, channels = graph.tensors[op.inputs[0]].shape
    return (1, *op.sliding.output(height, width), channels)


def flat_shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    """Return [1, all elements]."""
    return (1, math.prod(graph.tensors[op.inputs[0]].shape))


def _no_operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    return []


@dataclass(frozen=True)
class Spec:
    """A kind of op.

    Attributes:
        kind: Its name.
        layer: What messages call the layer of a model that becomes it.
        real: What it computes.
        example: Makes a small float graph of random shapes from "x" to "y", whose last op is of
            this kind; the tests of all ops run it.
        activations: How many it reads, of a variadic one at least.
        variadic: Whether it joins any number of them.
        constants: How many it reads after them.
        takes_constant: Whether a constant may stand in the place of one of two activations.
        shape: Of its output.
        operands: (op, shapes of all inputs) -> what the shapes after the first must be.
        rules: (graph, op) -> what else is wrong with an op whose shapes are right, as "must ...".
        has_window: Whether it slides a window, over [1, h, w, c].
        reads_map: Whether it takes [1, h, w, c] alone.
        is_view: Whether it only says the shape anew.
        fuses_activation: Whether it can apply its `activation` to what it computes.
        activation: The one that it is itself.
        scale: Of its result, once integer.
        bounds: The least and the largest result, if both are known whatever it reads: the range of
            its integers then, in place of what calibration sees.
        symmetric: Which inputs must have the zero point 0, once integer.
        looks_up: Whether it reads an input of tokens, which choose rows of its constant; the result
            and the constant have one scale, once integer.
        wide_constants: Whether its constants, once integer, are int32 of 30 bits, not int8.
        weights: How they lie, if it reads (activation, weight, bias).
        attributes: The class of what an op of this kind has to say of itself, of plain values.
        aten: Operator of torch's ATen -> what reads it, see `Aten`.
        onnx: Operator of ONNX -> what reads it, see `Onnx`.
        only_trains: Whether training plans alone are made of it; exports hold what it becomes in
            evaluation.
        of_one_place: Whether each value of its result comes of those at one place of its inputs, in
            the same way at each, but for what constants say of it.
    """

    kind: ir.Kind
    layer: str
    real: Real
    example: Callable[[Random], ir.Graph]
    activations: int = 1
    variadic: bool = False
    constants: int = 0
    takes_constant: bool = False
    shape: Callable[[ir.Graph, ir.Op], ir.Shape] = same_shape
    operands: Callable[[ir.Op, Sequence[ir.Shape]], list[ir.Shape]] = _no_operands
    rules: Callable[[ir.Graph, ir.Op], Iterable[str]] = lambda graph, op: ()
    has_window: bool = False
    reads_map: bool = False
    is_view: bool = False
    fuses_activation: bool = False
    activation: ir.Activation = "none"
    scale: Scale = "rescaled"
    bounds: tuple[float, float] | None = None
    symmetric: tuple[int, ...] = ()
    looks_up: bool = False
    wide_constants: bool = False
    weights: Weights | None = None
    attributes: type[ir.Attributes] | None = None
    aten: Mapping[str, Aten] = field(default_factory=dict)
    onnx: Mapping[str, Onnx] = field(default_factory=dict)
    only_trains: bool = False
    of_one_place: bool = False


# Examples


def a_map(random: Random, least: int = 1) -> ir.Shape:
    """Return a random small [1, h, w, c]."""
    height, width = (int(size) for size in random.integers(least, least + 5, 2))
    return (1, height, width, int(random.integers(1, 10)))


def any_shape(random: Random) -> ir.Shape:
    """Return a random small shape, of features or of a map."""
    return (1, int(random.integers(1, 40))) if random.random() < 0.3 else a_map(random)


def an_activation(random: Random) -> ir.Activation:
    """Return what an op may fuse."""
    choices: tuple[ir.Activation, ...] = ("none", "relu", "relu6")
    return choices[int(random.integers(3))]


def graph_of(shapes: Sequence[ir.Shape], constants: Sequence[ir.Array], *ops: ir.Op) -> ir.Graph:
    """Return a float graph from "x".

    Args:
        shapes: Of "x", and of what each op writes.
        constants: Called c0, c1, ...
        *ops: In order; the last one writes the output.
    """
    names = ("x", *(op.output for op in ops))
    tensors = [ir.Tensor(name, shape) for name, shape in zip(names, shapes, strict=True)]
    for number, values in enumerate(constants):
        data = np.asarray(values, np.float32)
        tensors.append(ir.Tensor(f"c{number}", data.shape, "float32", data))
    return ir.Graph({each.name: each for each in tensors}, ops, ("x",), (names[-1],))


def unary_graph(random: Random, kind: ir.Kind) -> ir.Graph:
    """Return a graph of an op that reads one value and gives one of that shape."""
    shape = any_shape(random)
    return graph_of((shape, shape), (), ir.Op(kind, ("x",), ("y",)))


def window_graph(random: Random, kind: ir.Kind, window: ir.Window, shape: ir.Shape) -> ir.Graph:
    """Return a graph of an op that slides a window over each channel."""
    out = (1, *window.output(shape[1], shape[2]), shape[3])
    return graph_of((shape, out), (), ir.Op(kind, ("x",), ("y",), window))
