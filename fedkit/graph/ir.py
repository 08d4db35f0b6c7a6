"""The graph that every exporter sees.

Layouts are decided here and nowhere else:

- activations: NHWC, [1, height, width, channels], or [1, features]; the batch dimension is 1; a
  series is a map of height 1, [1, 1, length, channels]
- conv2d weights: [out, kernel height, kernel width, in]
- depthwise_conv2d weights: [1, kernel height, kernel width, out], out = in * multiplier, where
  output channel o reads input channel o // multiplier
- linear weights: [out, in]; biases and the two vectors of `affine`: [out]

`fedkit.graph.ops` has what each kind of op computes, `fedkit.graph.verify` the rules of a graph.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ExportError

Array = NDArray[Any]
FloatArray = NDArray[np.float32]
Inputs = NDArray[np.float32] | NDArray[np.int64]
"""Of a model of torch: numbers, or tokens."""
Codes = NDArray[np.int8] | NDArray[np.int32]
"""Of an int8 graph: numbers, or tokens."""
Shape = tuple[int, ...]
DType = Literal["float32", "int8", "int32"]
Activation = Literal["none", "relu", "relu6"]
Kind = str
"""What an op does: one of `fedkit.graph.ops.registry.SPECS`, as `verify` checks."""

LARGEST_SIZE = 2**26
"""Elements of one value: far beyond small devices, and small enough to be held in memory."""

LARGEST_KERNEL = 2**16
"""Places of a window: a pool over 256x256 pixels."""


@dataclass(frozen=True)
class Quantization:
    """Affine quantisation, real = scale * (integer - zero_point).

    Attributes:
        scale: One positive float32 value, or one per channel.
        zero_point: As many integers as scales.
        axis: The channel axis, or None for one scale per tensor.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None


TOKENS = Quantization((1.0,), (0,))
"""Of an input of tokens once it is integer: int32, which stand for themselves."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A named value: an activation, or a constant if it has data.

    Attributes:
        parameter: Of a constant that is a model's parameter or statistic, in whatever layout: its
            name there.
    """

    name: str
    shape: Shape
    dtype: DType = "float32"
    data: Array | None = None
    quantization: Quantization | None = None
    parameter: str = ""

    @property
    def scale(self) -> float:
        """Scale of a tensor quantised as a whole."""
        return _whole(self).scale[0]

    @property
    def zero_point(self) -> int:
        """Zero point of a tensor quantised as a whole."""
        return _whole(self).zero_point[0]


@dataclass(frozen=True)
class Window:
    """How a kernel slides over height and width; pairs are (vertical, horizontal).

    Attributes:
        padding: Rows and columns added at (top, bottom, left, right), never negative.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of what the window produces."""
        top, bottom, left, right = self.padding
        rows, columns = height + top + bottom, width + left + right
        return self._steps(rows, 0), self._steps(columns, 1)

    def _steps(self, size: int, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (size - reach) // self.stride[axis] + 1


@dataclass(frozen=True)
class Attributes:
    """What an op's kind has to say of it beyond a window: a frozen dataclass of plain values."""


@dataclass(frozen=True)
class Epsilon(Attributes):
    """What a norm adds to its spread, greater than 0."""

    eps: float


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        inputs: Names of the activations read, then of the constants.
        outputs: Name of the one activation written.
        window: Present exactly if the kind slides one.
        activation: Applied to the result; not "none" only if the kind can.
        source: The torch module or ONNX node that this op comes from, for messages.
        attributes: Of the class that the kind has for them; None if it has none.
    """

    kind: Kind
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    window: Window | None = None
    activation: Activation = "none"
    source: str = ""
    attributes: Attributes | None = None

    @property
    def output(self) -> str:
        """Name of the activation that this op writes."""
        return self.outputs[0]

    @property
    def sliding(self) -> Window:
        """The window, of a kind that slides one."""
        assert self.window is not None  # the verifier's rule
        return self.window


@dataclass(frozen=True, eq=False)
class Origin:
    """What an int8 graph was made from, and how far it is from it.

    Attributes:
        floats: The float graph.
        examples: How many of the calibration set were compared.
        noise: Activation -> noise over signal on them, see `edge.quantize.truth`.
        same_class: Share of them whose largest output is the same one.
    """

    floats: Graph
    examples: int
    noise: Mapping[str, float]
    same_class: float


@dataclass(frozen=True)
class Guard:
    """What the deviation over the channels of a value was, where a norm of it was frozen.

    Attributes:
        low: The least one that was seen.
        high: The largest.
        centred: Whether it is from their mean, or from 0.
    """

    low: float = 0.0
    high: float = math.inf
    centred: bool = True


@dataclass(frozen=True, eq=False)
class Graph:
    """Tensors by name, and ops in an order in which they can run.

    Attributes:
        origin: Of an int8 graph, where it is known.
        series: Outputs that the model gives as [n, channels, length]; other maps of height 1 are
            maps in the model too.
        guards: Of a float graph: value that a frozen norm reads -> its range.
        tied: Of a float graph, groups of activations that have one scale once they are integer.
    """

    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    origin: Origin | None = None
    series: tuple[str, ...] = ()
    guards: Mapping[str, Guard] = field(default_factory=dict)
    tied: tuple[tuple[str, ...], ...] = ()

    def producer(self, name: str) -> Op | None:
        """Return the op that writes `name`, or None for an input or a constant."""
        return next((op for op in self.ops if name in op.outputs), None)

    def sole_consumer(self, name: str) -> Op | None:
        """Return the one op that reads `name`, or None if others, a guard or the caller do too."""
        readers = [op for op in self.ops if name in op.inputs]
        is_seen = name in self.outputs or name in self.guards
        return readers[0] if len(readers) == 1 and not is_seen else None

    def constant(self, name: str) -> Array:
        """Return the data of a constant."""
        data = self.tensors[name].data
        if data is None:
            raise ExportError(f"tensor {name!r} is an activation; only constants have data")
        return data

    def rewrite(self, old: Sequence[Op], new: Sequence[Op], tensors: Sequence[Tensor]) -> Graph:
        """Put `new` where the last of `old` stood, add `tensors`, drop tensors now unused."""
        ops: list[Op] = []
        for op in self.ops:
            if op is old[-1]:
                ops.extend(new)
            elif not any(op is gone for gone in old):
                ops.append(op)
        known = {**self.tensors, **{tensor.name: tensor for tensor in tensors}}
        used = {*self.inputs, *self.outputs}.union(*((*op.inputs, *op.outputs) for op in ops))
        kept = {name: tensor for name, tensor in known.items() if name in used}
        return replace(self, tensors=kept, ops=tuple(ops))


def until(graph: Graph, name: str) -> Graph:
    """Return the part of a graph that computes one activation, which becomes its output."""
    series = tuple(each for each in graph.series if each == name)
    return needed(Graph(graph.tensors, graph.ops, graph.inputs, (name,), series=series))


def needed(graph: Graph) -> Graph:
    """Return a graph without what no output depends on, and nothing that guards watch."""
    wanted, ops = {*graph.outputs, *graph.guards}, []
    for op in reversed(graph.ops):
        if op.output in wanted:
            wanted.update(op.inputs)
            ops.append(op)
    kept = wanted | set(graph.inputs)
    tensors = {each: tensor for each, tensor in graph.tensors.items() if each in kept}
    return replace(graph, tensors=tensors, ops=tuple(reversed(ops)))


def along(axis: int, values: Array, dimensions: int) -> Array:
    """Return values per channel in a shape that goes with weights of so many dimensions."""
    shape = [1] * dimensions
    shape[axis] = -1
    return np.reshape(values, shape)


def same_padding(
    size: Sequence[int], out: Sequence[int], window: Window
) -> tuple[int, int, int, int]:
    """Return the padding "SAME" means in TFLite: half of it first, the odd row or column last."""
    pads: list[int] = []
    for axis in range(2):
        reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1
        total = max(0, (out[axis] - 1) * window.stride[axis] + reach - size[axis])
        pads += [total // 2, total - total // 2]
    return pads[0], pads[1], pads[2], pads[3]


def to_graph_layout(batch: Array) -> Array:
    """Turn torch's [n, c, h, w] into this graph's [n, h, w, c]; [n, f] stays as it is.

    A series [n, c, length] is a map of height 1.
    """
    batch = as_maps(batch)
    return np.ascontiguousarray(np.moveaxis(batch, 1, 3)) if batch.ndim == 4 else batch


def from_graph_layout(batch: Array) -> Array:
    """Turn this graph's [n, h, w, c] into torch's [n, c, h, w]; [n, f] stays as it is."""
    return np.ascontiguousarray(np.moveaxis(batch, 3, 1)) if batch.ndim == 4 else batch


def as_maps(batch: Array) -> Array:
    """Return series [n, c, length] as [n, c, 1, length]; others stay as they are."""
    return batch[:, :, None] if batch.ndim == 3 else batch


def _whole(tensor: Tensor) -> Quantization:
    if tensor.quantization is None or tensor.quantization.axis is not None:
        raise ExportError(f"tensor {tensor.name!r} is not quantised as a whole; quantise it first")
    return tensor.quantization


def unused_name(name: str, taken: Container[str]) -> str:
    """Return a name for what is derived from a tensor: the model may already use the plain name."""
    while name in taken:
        name += "_"
    return name
