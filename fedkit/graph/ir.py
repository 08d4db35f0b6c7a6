"""The graph that every exporter sees, and the rules it keeps.

Layouts are decided here and nowhere else:

- activations: NHWC, [1, height, width, channels], or [1, features]; the batch dimension is 1
- conv2d weights: [out, kernel height, kernel width, in]
- depthwise_conv2d weights: [1, kernel height, kernel width, out], out = in * multiplier, where
  output channel o reads input channel o // multiplier
- linear weights: [out, in]; biases and the two vectors of `affine`: [out]

`fedkit.graph.interpret` defines what each kind of op computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ExportError

Array = NDArray[Any]
Shape = tuple[int, ...]
DType = Literal["float32", "int8", "int32"]
Activation = Literal["none", "relu", "relu6"]
Kind = Literal[
    "conv2d",
    "depthwise_conv2d",
    "linear",
    "affine",  # x * scale + shift per channel: a BatchNorm in evaluation
    "relu",
    "relu6",
    "add",
    "concat",  # of channels or features, of one input or more
    "mean",  # over height and width; to [1, 1, 1, c] or [1, c]
    "avg_pool2d",  # padding is not counted
    "max_pool2d",
    "pad",  # with zeros
    "reshape",  # keeps the order of the elements
    "flatten_nchw",  # to [1, c * h * w] in torch's order: channel, row, column
]

WEIGHTED: frozenset[Kind] = frozenset({"conv2d", "depthwise_conv2d", "linear"})
"""Ops with inputs (activation, weight, bias)."""

FUSES_ACTIVATION: frozenset[Kind] = WEIGHTED | {"add"}
"""Ops that can apply their `activation` to what they compute."""

KEEPS_SCALE: frozenset[Kind] = frozenset(
    {"concat", "avg_pool2d", "max_pool2d", "pad", "reshape", "flatten_nchw"}
)
"""Ops whose output is quantised exactly as all of their inputs."""

WINDOWED: frozenset[Kind] = frozenset(
    {"conv2d", "depthwise_conv2d", "avg_pool2d", "max_pool2d", "pad"}
)

CHANNEL_AXIS: Mapping[Kind, int] = {"conv2d": 0, "depthwise_conv2d": 3, "linear": 0}
"""Axis of the output channels in the weights of each weighted op."""

LARGEST_SIZE = 2**26
"""Elements of one value: far beyond small devices, and small enough to be held in memory."""

LARGEST_KERNEL = 2**16
"""Places of a window: a pool over 256x256 pixels."""

SMALLEST_MULTIPLIER = 2.0**-31
LARGEST_MULTIPLIER = 256.0
"""What a sum may be multiplied by to become int8, so that kernels can: less than the largest."""

_ARITY: Mapping[Kind, tuple[int, int]] = {
    **dict.fromkeys(WEIGHTED | {"affine"}, (1, 2)),
    **dict.fromkeys(KEEPS_SCALE | {"relu", "relu6", "mean"}, (1, 0)),
    "add": (2, 0),
}
"""Kind -> number of activation inputs (of a concat at least), and of constants after them."""

_INTEGER_RANGE: Mapping[DType, tuple[int, int]] = {
    "int8": (-128, 127),
    "int32": (-(2**31), 2**31 - 1),
}


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


@dataclass(frozen=True, eq=False)
class Tensor:
    """A named value: an activation, or a constant if it has data."""

    name: str
    shape: Shape
    dtype: DType = "float32"
    data: Array | None = None
    quantization: Quantization | None = None

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
class Op:
    """One operation.

    Attributes:
        inputs: Names of the activations read, then of the constants.
        outputs: Name of the one activation written.
        window: Present exactly for the kinds in `WINDOWED`.
        activation: Applied to the result; not "none" only for kinds in `FUSES_ACTIVATION`.
        source: The torch module or ONNX node that this op comes from, for messages.
    """

    kind: Kind
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    window: Window | None = None
    activation: Activation = "none"
    source: str = ""

    @property
    def output(self) -> str:
        """Name of the activation that this op writes."""
        return self.outputs[0]


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


@dataclass(frozen=True, eq=False)
class Graph:
    """Tensors by name, and ops in an order in which they can run.

    Attributes:
        origin: Of an int8 graph, where it is known.
    """

    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    origin: Origin | None = None

    def producer(self, name: str) -> Op | None:
        """Return the op that writes `name`, or None for an input or a constant."""
        return next((op for op in self.ops if name in op.outputs), None)

    def sole_consumer(self, name: str) -> Op | None:
        """Return the one op that reads `name`, or None if others (or the caller) read it too."""
        readers = [op for op in self.ops if name in op.inputs]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

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
    needed, ops = {name}, []
    for op in reversed(graph.ops):
        if op.output in needed:
            needed.update(op.inputs)
            ops.append(op)
    kept = needed | set(graph.inputs)
    tensors = {each: tensor for each, tensor in graph.tensors.items() if each in kept}
    return Graph(tensors, tuple(reversed(ops)), graph.inputs, (name,))


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
    """Turn torch's [n, c, h, w] into this graph's [n, h, w, c]; [n, f] stays as it is."""
    return np.ascontiguousarray(np.moveaxis(batch, 1, 3)) if batch.ndim == 4 else batch


def infer_shape(graph: Graph, op: Op) -> Shape:
    """Return the shape that `op` gives its output."""
    x = graph.tensors[op.inputs[0]].shape
    out = graph.tensors[op.output].shape
    if op.kind == "linear":
        return (1, graph.tensors[op.inputs[1]].shape[0])
    if op.kind == "mean":
        return (1, x[-1]) if len(out) == 2 else (1, 1, 1, x[-1])
    if op.kind == "reshape":
        return out if math.prod(out) == math.prod(x) else (1, math.prod(x))
    if op.kind == "flatten_nchw":
        return (1, math.prod(x))
    if op.kind == "concat":
        return (*x[:-1], sum(graph.tensors[name].shape[-1] for name in op.inputs))
    if op.window is None:
        return x
    channels = x[-1]
    if op.kind in WEIGHTED:
        channels = graph.tensors[op.inputs[1]].shape[CHANNEL_AXIS[op.kind]]
    return (1, *op.window.output(x[1], x[2]), channels)


def limits(graph: Graph, op: Op) -> tuple[int, int]:
    """Return the least and the largest integer that an op of an int8 graph may write.

    So it is in what we emit ourselves; runtimes that compute the integer of 6 may round it else.
    """
    out = graph.tensors[op.output]
    low = -128 if activation(op) == "none" else max(-128, out.zero_point)
    if activation(op) != "relu6":
        return low, 127
    return low, min(127, out.zero_point + round(6.0 / out.scale))


def activation(op: Op) -> Activation:
    """Return what is applied to the result of an op, which may be an activation itself."""
    return op.kind if op.kind in ("relu", "relu6") else op.activation


def verify(graph: Graph) -> None:
    """Check every rule of the graph.

    Raises:
        ExportError: Names the first rule that is broken, and where.
    """
    for rule in _RULES:
        for violation in rule(graph):
            raise ExportError(
                f"the graph breaks a rule: {violation}; this is a fault of the pass or of the "
                f"model's values that came before, not of the target"
            )


def _whole(tensor: Tensor) -> Quantization:
    if tensor.quantization is None or tensor.quantization.axis is not None:
        raise ExportError(f"tensor {tensor.name!r} is not quantised as a whole; quantise it first")
    return tensor.quantization


def _name(op: Op) -> str:
    return f"op {op.kind} -> {op.output!r} (module {op.source!r})"


def _names_are_known(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        for name in (*op.inputs, *op.outputs):
            if name not in graph.tensors:
                yield f"{_name(op)} uses tensor {name!r}, which the graph does not have"
    for name in (*graph.inputs, *graph.outputs):
        if name not in graph.tensors:
            yield f"{name!r} is an input or output, but the graph does not have such a tensor"


def _written_once_before_read(graph: Graph) -> Iterator[str]:
    ready = {name for name, tensor in graph.tensors.items() if tensor.data is not None}
    ready |= set(graph.inputs)
    for op in graph.ops:
        for name in op.inputs:
            if name not in ready:
                yield f"{_name(op)} reads {name!r} before an op writes it"
        for name in op.outputs:
            if name in ready:
                yield f"{_name(op)} writes {name!r}, which is a constant or written already"
        ready |= set(op.outputs)
    for name in graph.outputs:
        if name not in ready:
            yield f"output {name!r} is never written"


def _operands_fit_the_kind(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        activations, constants = _ARITY[op.kind]
        if op.kind == "concat":
            activations = max(activations, len(op.inputs))
        is_constant = [graph.tensors[name].data is not None for name in op.inputs]
        if is_constant != [False] * activations + [True] * constants or len(op.outputs) != 1:
            yield f"{_name(op)} must read {activations} activation(s), then {constants} constant(s)"
        if (op.window is not None) != (op.kind in WINDOWED):
            yield f"{_name(op)} must have a window exactly if its kind slides one"
        if op.activation != "none" and op.kind not in FUSES_ACTIVATION:
            yield f"{_name(op)} cannot apply the activation {op.activation!r} itself"


def _shapes_agree(graph: Graph) -> Iterator[str]:
    for tensor in graph.tensors.values():
        if tensor.data is not None:
            if tensor.data.shape != tensor.shape or tensor.data.dtype != tensor.dtype:
                yield (
                    f"constant {tensor.name!r} is declared {tensor.dtype} {tensor.shape} "
                    f"but holds {tensor.data.dtype} {tensor.data.shape}"
                )
        elif len(tensor.shape) not in (2, 4) or tensor.shape[0] != 1 or min(tensor.shape) < 1:
            yield f"activation {tensor.name!r} has shape {tensor.shape}, not [1, h, w, c] or [1, f]"
    for op in graph.ops:
        yield from _operand_shapes_agree(graph, op)


def _sizes_can_be_held(graph: Graph) -> Iterator[str]:
    for name, tensor in graph.tensors.items():
        if math.prod(tensor.shape) > LARGEST_SIZE:
            yield f"tensor {name!r} of shape {tensor.shape} has more than {LARGEST_SIZE} elements"
    for op in graph.ops:
        if op.window is not None:
            _, height, width, channels = graph.tensors[op.inputs[0]].shape
            top, bottom, left, right = op.window.padding
            padded = (height + top + bottom) * (width + left + right) * channels
            if padded > LARGEST_SIZE or math.prod(op.window.kernel) > LARGEST_KERNEL:
                yield (
                    f"{_name(op)} has the window {op.window}, whose kernel must have at most "
                    f"{LARGEST_KERNEL} places and whose padded input {LARGEST_SIZE} elements"
                )


def _operand_shapes_agree(graph: Graph, op: Op) -> Iterator[str]:
    shapes = [graph.tensors[name].shape for name in op.inputs]
    needs_image = op.kind in WINDOWED | {"mean", "flatten_nchw"}
    if needs_image and len(shapes[0]) != 4:
        yield f"{_name(op)} needs [1, h, w, c] but reads {shapes[0]}"
    elif (expected := _constant_shapes(op, shapes)) != shapes[1:]:
        yield f"{_name(op)} needs operands of shape {expected} but has {shapes[1:]}"
    elif (inferred := infer_shape(graph, op)) != graph.tensors[op.output].shape:
        yield f"{_name(op)} is declared {graph.tensors[op.output].shape} but gives {inferred}"


def _constant_shapes(op: Op, shapes: list[Shape]) -> list[Shape]:
    """Return the shapes that the operands after the first must have."""
    if op.kind == "add":
        return [shapes[0]]
    if op.kind == "concat":
        return [(*shapes[0][:-1], *shape[-1:]) for shape in shapes[1:]]
    if op.kind == "affine":
        return [(shapes[0][-1],)] * 2
    if op.kind not in WEIGHTED:
        return []
    cin, out = shapes[0][-1], shapes[1][CHANNEL_AXIS[op.kind]]
    kernel = op.window.kernel if op.window else ()
    weight: Mapping[Kind, Shape] = {
        "conv2d": (out, *kernel, cin),
        "depthwise_conv2d": (1, *kernel, cin * max(1, out // cin)),
        "linear": (out, cin),
    }
    return [weight[op.kind], (out,)]


def _constants_are_finite(graph: Graph) -> Iterator[str]:
    for tensor in graph.tensors.values():
        if tensor.data is not None and not np.isfinite(tensor.data).all():
            yield f"constant {tensor.name!r} holds NaN or infinity; retrain or repair the weights"


def _quantised_wholly_or_not_at_all(graph: Graph) -> Iterator[str]:
    quantised = any(tensor.quantization for tensor in graph.tensors.values())
    for tensor in graph.tensors.values():
        if (tensor.quantization is not None) != quantised:
            yield f"tensor {tensor.name!r} must be quantised if and only if all others are"
        if (tensor.dtype == "float32") == quantised:
            yield f"tensor {tensor.name!r} is {tensor.dtype}, which does not fit its quantisation"


def _quantisation_is_sound(graph: Graph) -> Iterator[str]:
    for tensor in graph.tensors.values():
        q = tensor.quantization
        if q is None:
            continue
        if tensor.data is None and (q.axis is not None or tensor.dtype != "int8"):
            yield f"activation {tensor.name!r} must be int8 with one scale, not {tensor.dtype}"
        if q.axis is not None and not 0 <= q.axis < len(tensor.shape):
            yield f"tensor {tensor.name!r} has scales along axis {q.axis}, which it does not have"
            continue
        low, high = _INTEGER_RANGE[tensor.dtype]
        count = 1 if q.axis is None else tensor.shape[q.axis]
        if len(q.scale) != count or len(q.zero_point) != count:
            yield f"tensor {tensor.name!r} needs {count} scale(s) but has {len(q.scale)}"
        if not all(math.isfinite(s) and s > 0 for s in q.scale):
            yield f"tensor {tensor.name!r} has a scale that is not a positive number"
        if not all(low <= z <= high for z in q.zero_point):
            yield f"tensor {tensor.name!r} has a zero point outside {tensor.dtype}"


def _scales_agree(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        x, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
        if x.quantization is None:
            continue
        of_inputs = {graph.tensors[name].quantization for name in op.inputs}
        if op.kind in KEEPS_SCALE and of_inputs != {out.quantization}:
            yield f"{_name(op)} must keep the scale and zero point of its inputs"
        if op.kind in WEIGHTED:
            yield from _weight_scales_agree(op, x, *(graph.tensors[n] for n in op.inputs[1:]))
        elif not all(
            _is_below_largest(graph.tensors[name].scale / out.scale) for name in op.inputs
        ):
            yield f"{_name(op)} must have an output scale above 1/256 of its inputs' scales"


def _is_below_largest(factor: float) -> bool:
    return bool(np.float32(factor) < LARGEST_MULTIPLIER)


def _weight_scales_agree(op: Op, x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[str]:
    assert weight.quantization and bias.quantization  # an earlier rule
    axes = weight.quantization.axis, bias.quantization.axis
    if (weight.dtype, bias.dtype, *axes) != ("int8", "int32", CHANNEL_AXIS[op.kind], 0):
        yield f"{_name(op)} must have int8 weights and int32 biases with a scale per channel"
        return
    if any(weight.quantization.zero_point) or any(bias.quantization.zero_point):
        yield f"{_name(op)} must have symmetric weights and bias (zero points 0)"
    product = x.scale * np.asarray(weight.quantization.scale)
    if not np.allclose(bias.quantization.scale, product, rtol=1e-6, atol=0):
        yield f"{_name(op)} must have a bias scale equal to input scale * weight scale"


def _multipliers_fit(graph: Graph) -> Iterator[str]:
    for op in graph.ops:
        x, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
        if x.quantization is None or op.kind not in WEIGHTED:
            continue
        weight, bias = (graph.tensors[name] for name in op.inputs[1:])
        assert weight.quantization  # an earlier rule
        factor = x.scale * np.asarray(weight.quantization.scale) / out.scale
        if not (factor.min() >= SMALLEST_MULTIPLIER and _is_below_largest(factor.max())):
            found = f"{factor.min():.3g} to {factor.max():.3g}"
            yield f"{_name(op)} rescales by {found}; it must be at least 2^-31 and below 256"
        worst = _largest_sums(graph.constant(weight.name), graph.constant(bias.name), op.kind)
        if worst.max() >= 2**31:
            yield f"{_name(op)} sums up to {worst.max()} in an accumulator of 32 bits"
        # Kernels shift a sum to the left before they multiply it by what is below 1.
        shifted = np.ldexp(worst.astype(np.float64), np.maximum(np.frexp(factor)[1], 0))
        if shifted.max() >= 2**31 > worst.max():
            yield f"{_name(op)} rescales sums to {shifted.max():.3g}, which 32 bits do not hold"


def unused_name(name: str, taken: Container[str]) -> str:
    """Return a name for what is derived from a tensor: the model may already use the plain name."""
    while name in taken:
        name += "_"
    return name


def accumulator_bound(weight: Array, bias: Array, kind: Kind) -> int:
    """Return the largest magnitude that a sum over int8 weights, in any order, can have."""
    return int(_largest_sums(weight, bias, kind).max())


def _largest_sums(weight: Array, bias: Array, kind: Kind) -> Array:
    others = tuple(i for i in range(weight.ndim) if i != CHANNEL_AXIS[kind])
    sums = np.abs(weight.astype(np.int64)).sum(axis=others) * 255
    return np.asarray(sums + np.abs(bias.astype(np.int64)))


_RULES: tuple[Callable[[Graph], Iterator[str]], ...] = (
    _names_are_known,
    _written_once_before_read,
    _operands_fit_the_kind,
    _shapes_agree,
    _sizes_can_be_held,
    _constants_are_finite,
    _quantised_wholly_or_not_at_all,
    _quantisation_is_sound,
    _scales_agree,
    _multipliers_fit,
)
"""In order: a rule may rely on those before it."""
