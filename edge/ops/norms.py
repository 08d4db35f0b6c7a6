"""Norms over groups of channels, or over the channels of each place, in integers.

Our own targets take a root and a division of integers for each block of what is normalised. A
runtime's file holds steps in float32, each of which is one operation that IEEE 754 defines: what
they sum are whole numbers, so small that their sum is exact in any order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.define.rounding import Policy
from edge.ops.builders import CCompiler, OnnxFile, TfliteFile
from edge.ops.integer_spec import IntegerSpec, Link, Operands, centred
from fedkit.core.errors import ExportError
from fedkit.core.numerics import Int64s, shift_right_half_up
from fedkit.graph import integers, ir
from fedkit.graph.ops.norms import blocks_of, parted

_HAT_BITS = 24  # of a normalised value, behind the point
_ROOT_BITS = 61  # what a root divides is 2 to this power
_MOST_VALUES = 2**21  # of a block: n times a difference of two stays below 2^29
_MOST_EPS = 2.0**60
_FACTOR_BITS = 30
_LARGEST_SUM = 61  # bits of a product, and of what is added to it

_MOST_IN_FLOAT = {True: 1031, False: 258}
"""Whether they are off their mean, not off the zero point -> values of a block whose squares sum up
to less than 2^24 in any order."""

_MOST_IN_INT32 = {True: 2**17, False: 33024}
"""Values whose sum is below 2^24, and whose squares sum up to less than 2^31."""


def _norm(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    if policy.format == "own":
        return _in_integers(graph, op, centred(graph, op, 0, operands))
    return policy.whole(_in_floats(graph, op, operands[0])) + graph.tensors[op.output].zero_point


def _size(graph: ir.Graph, op: ir.Op) -> int:
    """Return how many values a block has."""
    shape, how = graph.tensors[op.inputs[0]].shape, blocks_of(op)
    whole = math.prod(shape) if 1 in how.over else shape[-1]
    return whole // how.groups


def _eps(graph: ir.Graph, op: ir.Op) -> float:
    """Return what is added to the variance, in squares of steps."""
    assert isinstance(op.attributes, ir.Epsilon)  # the verifier's rule
    return op.attributes.eps / graph.tensors[op.inputs[0]].scale ** 2


def _parameters(graph: ir.Graph, op: ir.Op) -> tuple[NDArray[np.float64], ...]:
    """Return the factor and the offset of each channel in steps of the output, float64."""
    out = graph.tensors[op.output]
    return tuple(
        graph.constant(name).astype(np.float64) * graph.tensors[name].scale / out.scale
        for name in op.inputs[1:]
    )


# Our own


@dataclass(frozen=True)
class _Numbers:
    """What an op is in integers.

    Attributes:
        eps: Added to n^2 times the variance: 1 to 2^60.
        factor: Of a normalised value, per channel: int64 of 30 bits.
        offset: Per channel.
        shift: Of the sum of both, which is in steps of the output then; 1 to 61.
    """

    eps: int
    factor: Int64s
    offset: Int64s
    shift: int


def _numbers(graph: ir.Graph, op: ir.Op) -> _Numbers:
    count = _size(graph, op)
    eps = count**2 * _eps(graph, op)
    if count > _MOST_VALUES:
        raise ExportError(
            f"op {op.kind} of module {op.source!r} is over {count} values, and integers hold "
            f"{_MOST_VALUES}: take more groups, or smaller images"
        )
    if not eps <= _MOST_EPS:
        raise ExportError(
            f"op {op.kind} of module {op.source!r} adds eps = {op.attributes} to values of steps "
            f"{graph.tensors[op.inputs[0]].scale:.3g}, beside which they are nothing: give "
            f"calibration examples of the true range"
        )
    factor, offset = _parameters(graph, op)
    largest = [math.frexp(float(np.abs(each).max()))[1] for each in (factor, offset)]
    # A normalised value of n is below the root of n.
    bits = min(_FACTOR_BITS, _LARGEST_SUM + 1 - _HAT_BITS - math.isqrt(count).bit_length())
    shift = min(_HAT_BITS + bits - largest[0], _LARGEST_SUM - largest[1], _LARGEST_SUM)
    if shift < 1:
        raise ExportError(
            f"op {op.kind} of module {op.source!r} makes {np.abs(factor).max():.3g} steps of one "
            f"deviation: give calibration examples of the true range"
        )
    return _Numbers(
        max(1, round(eps)),
        np.rint(np.ldexp(factor, shift - _HAT_BITS)).astype(np.int64),
        np.rint(np.ldexp(offset, shift)).astype(np.int64),
        shift,
    )


def _in_integers(graph: ir.Graph, op: ir.Op, x: Int64s) -> Int64s:
    how, count, blocks = _numbers(graph, op), _size(graph, op), blocks_of(op)
    v = parted(x, blocks.groups)
    total, squares = (each.sum(blocks.over, keepdims=True) for each in (v, v * v))
    total = total * blocks.centred
    size = count * squares - total * total + how.eps
    exponent = (_ROOT_BITS + 1 - _bit_length(size)) & ~1
    inverse = (1 << _ROOT_BITS) // _root(size << exponent)
    hat = shift_right_half_up(
        (count * v - total) * inverse, _ROOT_BITS - _HAT_BITS - (exponent >> 1)
    ).reshape(x.shape)
    scaled = shift_right_half_up(hat * how.factor + how.offset, how.shift)
    return np.asarray(scaled + graph.tensors[op.output].zero_point)


def _bit_length(x: Int64s) -> Int64s:
    found = np.frexp(x.astype(np.float64))[1].astype(np.int64)
    return np.asarray(found - (x >> (found - 1) == 0))  # where float64 rounded up


def _root(x: Int64s) -> Int64s:
    """Return floor(sqrt(x)) for x < 2^62."""
    root = np.sqrt(x.astype(np.float64)).astype(np.int64)
    root -= root * root > x
    return np.asarray(root + ((root + 1) * (root + 1) <= x))


# In float32


@dataclass(frozen=True)
class _Constants:
    """What a file holds of an op, float32: scalars, and per channel in steps of the output."""

    share: np.float32
    eps: np.float32
    factor: ir.FloatArray
    offset: ir.FloatArray


def _constants(graph: ir.Graph, op: ir.Op) -> _Constants:
    factor, offset = (each.astype(np.float32) for each in _parameters(graph, op))
    share = np.float32(1) / np.float32(_size(graph, op))
    return _Constants(share, np.float32(_eps(graph, op)), factor, offset)


def _in_floats(graph: ir.Graph, op: ir.Op, x: Int64s) -> ir.FloatArray:
    """Return what each step of the file gives, one after the other, up to steps of the output."""
    how, blocks = _constants(graph, op), blocks_of(op)
    hat = (_hat if blocks.centred else _hat_of_rms)(graph, op, parted(x, blocks.groups))
    return np.asarray(np.clip(hat.reshape(x.shape) * how.factor + how.offset, -(2**20), 2**20))


def _hat(graph: ir.Graph, op: ir.Op, values: Int64s) -> ir.FloatArray:
    how, count, over = _constants(graph, op), np.float32(_size(graph, op)), blocks_of(op).over
    total = values.sum(over, keepdims=True).astype(np.float32)
    middle = np.rint(total * how.share)
    off = values - middle.astype(np.int64)
    squares = np.square(off).sum(over, keepdims=True).astype(np.float32)
    rest = (total - middle * count) * how.share
    spread = np.sqrt((squares * how.share - rest * rest) + how.eps)
    return np.asarray((off.astype(np.float32) - rest) / spread)


def _hat_of_rms(graph: ir.Graph, op: ir.Op, values: Int64s) -> ir.FloatArray:
    how, off = _constants(graph, op), values - graph.tensors[op.inputs[0]].zero_point
    squares = np.square(off).sum(blocks_of(op).over, keepdims=True).astype(np.float32)
    return np.asarray(off.astype(np.float32) / np.sqrt(squares * how.share + how.eps))


def _is_in_float(graph: ir.Graph, op: ir.Op) -> bool:
    """Whether float32 holds the sums; else int32 does.

    Raises:
        ExportError: Neither does.
    """
    count, is_centred = _size(graph, op), blocks_of(op).centred
    if count > _MOST_IN_INT32[is_centred]:
        raise ExportError(
            f"op {op.kind} of module {op.source!r} is over {count} values, of which 32 bits hold "
            f"the squares of {_MOST_IN_INT32[is_centred]}: take more groups, smaller images, or "
            f"the c99 target"
        )
    return count <= _MOST_IN_FLOAT[is_centred]


class _Steps(ABC):
    """The steps of a file.

    Args:
        graph: The graph.
        op: The op, after whose output they are called.
    """

    def __init__(self, graph: ir.Graph, op: ir.Op) -> None:
        self.graph, self.op = graph, op

    @abstractmethod
    def call(self, operator: str, operands: list[str], name: str) -> str:
        """Add a step, by its name in TFLite; return the name of its result."""

    @abstractmethod
    def cast(self, x: str, name: str, to: Literal["float32", "int32"]) -> str:
        """Add the same numbers in another type; return their name."""

    @abstractmethod
    def number(self, name: str, values: np.float32 | np.int32 | ir.FloatArray) -> str:
        """Add a constant, of one number or one per channel; return its name."""

    @abstractmethod
    def total(self, x: str, name: str) -> str:
        """Add the sum over each block; return its name."""

    @abstractmethod
    def root(self, x: str, name: str) -> str:
        """Add the square root, rounded as IEEE 754 says; return its name."""

    def hat(self, x: str) -> str:
        """Add what normalises int8 that lie block by block; return its name."""
        if not blocks_of(self.op).centred:
            return self._hat_of_rms(x)
        call, how = self.call, _constants(self.graph, self.op)
        is_in_float = _is_in_float(self.graph, self.op)
        share, eps = self.number("share", how.share), self.number("eps", how.eps)
        count = self.number("count", np.float32(_size(self.graph, self.op)))
        values = self.cast(x, "values", "float32" if is_in_float else "int32")
        total = self._real(self.total(values, "total"), "total.real", is_in_float)
        middle = call("ROUND", [call("MUL", [total, share], "mean")], "middle")
        whole = middle if is_in_float else self.cast(middle, "middle.whole", "int32")
        off = call("SUB", [values, whole], "off")
        squares = self.total(call("MUL", [off, off], "off.squares"), "squares")
        squares = self._real(squares, "squares.real", is_in_float)
        left = call("SUB", [total, call("MUL", [middle, count], "middle.total")], "left")
        rest = call("MUL", [left, share], "rest")
        mean = call("MUL", [squares, share], "squares.mean")
        variance = call("SUB", [mean, call("MUL", [rest, rest], "rest.square")], "variance")
        spread = self.root(call("ADD", [variance, eps], "variance.eps"), "spread")
        centred = call("SUB", [self._real(off, "off.real", is_in_float), rest], "centred")
        return call("DIV", [centred, spread], "hat")

    def _hat_of_rms(self, x: str) -> str:
        call, how = self.call, _constants(self.graph, self.op)
        is_in_float = _is_in_float(self.graph, self.op)
        share, eps = self.number("share", how.share), self.number("eps", how.eps)
        kind = np.float32 if is_in_float else np.int32
        zero = self.number("zero", kind(self.graph.tensors[self.op.inputs[0]].zero_point))
        values = self.cast(x, "values", "float32" if is_in_float else "int32")
        off = call("SUB", [values, zero], "off")
        squares = self.total(call("MUL", [off, off], "off.squares"), "squares")
        squares = self._real(squares, "squares.real", is_in_float)
        mean = call("MUL", [squares, share], "squares.mean")
        spread = self.root(call("ADD", [mean, eps], "mean.eps"), "spread")
        return call("DIV", [self._real(off, "off.real", is_in_float), spread], "hat")

    def _real(self, x: str, name: str, is_real: bool) -> str:
        return x if is_real else self.cast(x, name, "float32")


class _TfliteSteps(_Steps):
    """Activations are [1, pixels, groups, channels of a group] there."""

    def __init__(self, file: TfliteFile, op: ir.Op) -> None:
        super().__init__(file.graph, op)
        self.file = file
        x, how = file.graph.tensors[op.inputs[0]].shape, blocks_of(op)
        self.axes = how.over
        self.shape = 1, math.prod(x[1:-1]), how.groups, x[-1] // how.groups
        self.sums = 1, 1 if 1 in how.over else self.shape[1], how.groups, 1
        self.made: dict[str, ir.Tensor] = {}

    def tensor(self, name: str, shape: ir.Shape, dtype: ir.DType = "float32") -> str:
        """Add a tensor that is not quantised."""
        made = ir.Tensor(f"{self.op.output}.{name}", shape, dtype)
        self.made[made.name] = made
        return self.file.tensor(made)

    def call(self, operator: str, operands: list[str], name: str) -> str:
        read = [self.made[each] for each in operands if each in self.made]
        shape = max((each.shape for each in read), key=math.prod)
        out = self.tensor(name, shape, read[0].dtype)
        options = f"{operator.capitalize()}Options" if operator in _WITH_OPTIONS else ""
        self.file.operator(operator, operands, out, options, (1, 1))
        return out

    def cast(self, x: str, name: str, to: ir.DType) -> str:
        source = self.made[x]
        made = ir.Tensor(f"{self.op.output}.{name}", source.shape, to)
        self.made[made.name] = made
        return self.file.cast(source, made.name, to)

    def number(self, name: str, values: np.float32 | np.int32 | ir.FloatArray) -> str:
        data = np.asarray(values).reshape(-1)
        kind: ir.DType = "int32" if data.dtype == np.int32 else "float32"
        return self.file.tensor(ir.Tensor(f"{self.op.output}.{name}", data.shape, kind, data))

    def total(self, x: str, name: str) -> str:
        out = self.tensor(name, self.sums, self.made[x].dtype)
        axes = self.file.constant(f"{out}.axes", list(self.axes))
        self.file.operator("SUM", [x, axes], out, "ReducerOptions", (1, 1), keepDims=True)
        return out

    def root(self, x: str, name: str) -> str:
        """XNNPACK's is not that of IEEE 754; of 7 axes it leaves it to TFLite's own, which is."""
        wide = self.tensor(f"{name}.wide", (1,) * 3 + self.sums)
        self.file.reshape(x, wide, (1,) * 3 + self.sums)
        root = self.tensor(f"{name}.root", (1,) * 3 + self.sums)
        self.file.operator("SQRT", [wide], root, "", (1, 1))
        out = self.tensor(name, self.sums)
        self.file.reshape(root, out, self.sums)
        return out


_WITH_OPTIONS = ("ADD", "SUB", "MUL", "DIV")


def _tflite(file: TfliteFile, op: ir.Op) -> None:
    x, out = (file.graph.tensors[name] for name in (op.inputs[0], op.output))
    if x.dtype == "float32":
        raise ExportError(
            f"op {op.kind} of module {op.source!r} has no TFLite form of floats; quantise the graph"
        )
    steps, how = _TfliteSteps(file, op), _constants(file.graph, op)
    parts = replace(x, name=f"{op.output}.parts", shape=steps.shape)
    steps.made[parts.name] = parts
    file.reshape(x.name, file.tensor(parts), steps.shape)
    hat = steps.hat(parts.name)
    whole = steps.tensor("hat.whole", x.shape)
    file.reshape(hat, whole, x.shape)
    scaled = steps.call("MUL", [whole, steps.number("factor", how.factor)], "scaled")
    value = steps.tensor("steps", x.shape)
    is_cut = op.activation != "none"
    file.operator(
        "ADD",
        [scaled, steps.number("offset", how.offset)],
        value,
        "AddOptions",
        (1, 1),
        fusedActivationFunction=file.activation(replace(op, activation="relu")) if is_cut else 0,
    )
    high = integers.limits(file.graph, op)[1]
    if high < 127:
        most = steps.number("most", np.float32(high - out.zero_point))
        cut = steps.tensor("cut", x.shape)
        file.operator("MINIMUM", [value, most], cut, "MaximumMinimumOptions", (1, 1))
        value = cut
    # In steps of 1, which are told anew: a division by the scale would round.
    plain = ir.Tensor(
        f"{op.output}.plain", x.shape, "int8", None, ir.Quantization((1.0,), (out.zero_point,))
    )
    file.operator("QUANTIZE", [value], file.tensor(plain), "QuantizeOptions", (1, 1))
    file.reshape(plain.name, op.output, out.shape)


class _OnnxSteps(_Steps):
    """Activations are [1, groups, values of a group] there, or [1, channels, places]."""

    def __init__(self, file: OnnxFile, op: ir.Op) -> None:
        super().__init__(file.graph, op)
        shape, how = file.graph.tensors[op.inputs[0]].shape, blocks_of(op)
        is_of_groups = 1 in how.over
        parts = how.groups if is_of_groups else shape[-1]
        self.file, self.axis = file, 2 if is_of_groups else 1
        self.shape = 1, parts, math.prod(shape) // parts

    def call(self, operator: str, operands: list[str], name: str) -> str:
        return self.file.node(operator.capitalize(), operands, f"{self.op.output}.{name}")

    def cast(self, x: str, name: str, to: ir.DType) -> str:
        kind = np.float32 if to == "float32" else np.int32
        return self.file.cast(x, f"{self.op.output}.{name}", kind)

    def number(self, name: str, values: np.float32 | np.int32 | ir.FloatArray) -> str:
        return self.file.constant(f"{self.op.output}.{name}", np.asarray(values))

    def total(self, x: str, name: str) -> str:
        axes = self.file.constant(f"{self.op.output}.axes", np.array([self.axis], np.int64))
        return self.file.node("ReduceSum", [x, axes], f"{self.op.output}.{name}", keepdims=1)

    def root(self, x: str, name: str) -> str:
        return self.file.node("Sqrt", [x], f"{self.op.output}.{name}")


def _onnx(file: OnnxFile, op: ir.Op) -> None:
    x, out = (file.graph.tensors[name] for name in (op.inputs[0], op.output))
    steps, how = _OnnxSteps(file, op), _constants(file.graph, op)
    file.reshape(x.name, f"{op.output}.parts", steps.shape)
    hat = steps.hat(f"{op.output}.parts")
    plane = x.shape[1:-1]
    shape = (1, x.shape[-1], *plane)
    file.reshape(hat, f"{op.output}.hat.whole", shape)
    per_channel = (-1, *(1,) * len(plane))
    factor, offset = (
        steps.number(name, each.reshape(per_channel))
        for name, each in (("factor", how.factor), ("offset", how.offset))
    )
    value = steps.call("MUL", [f"{op.output}.hat.whole", factor], "scaled")
    value = steps.call("ADD", [value, offset], "steps")
    # In steps of 1: a division by the scale would round.
    low, high = integers.limits(file.graph, op)
    is_cut = (low, high) != (-128, 127)
    plain = f"{op.output}.unclipped" if is_cut else op.output
    zero_point = file.constant(f"{op.output}.plain_zero", np.array(out.zero_point, np.int8))
    file.node("QuantizeLinear", [value, steps.number("one", np.float32(1)), zero_point], plain)
    if is_cut:
        bounds = [
            file.constant(f"{op.output}.{name}", np.array(bound, np.int8))
            for name, bound in (("low", low), ("high", high))
        ]
        file.node("Clip", [plain, *bounds], op.output)


# C


def _c99(kind: str, function: str, c: CCompiler, op: ir.Op) -> None:
    blocks = blocks_of(op)
    first = blocks.groups if 1 in blocks.over else int(blocks.centred)
    how, out = _numbers(c.graph, op), c.graph.tensors[op.output]
    low, high = integers.limits(c.graph, op)
    offset = how.offset + (1 << (how.shift - 1))
    ends = [each + 128 for each in (out.zero_point, low, high)]
    numbers = first, how.factor.astype(np.int32), offset, how.eps, how.shift
    norm = c.struct(kind, *numbers, *ends)
    layouts = [c.layout(name) for name in (op.inputs[0], op.output)]
    places = c.place(op.inputs[0]), c.new(op.output)
    c.call(function, norm, *layouts, *places, source=op.source)


def _all_channels(graph: ir.Graph, op: ir.Op) -> list[Link]:
    """Link each channel with all: none may go."""
    channels = graph.tensors[op.output].shape[-1]
    each = np.arange(channels)
    return [Link(op.inputs[0], np.repeat(each, channels), np.tile(each, channels))]


SPECS = tuple(
    IntegerSpec(kind, _norm, _all_channels, tflite=_tflite, onnx=_onnx, c99=c99)
    for kind, c99 in (
        ("group_norm", partial(_c99, "ek_norm", "ek_group_norm")),
        ("channel_norm", partial(_c99, "ek_channel_scale", "ek_channel_norm")),
    )
)
