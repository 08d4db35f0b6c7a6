"""Functions of one value in integers: what each of 256 values becomes.

Our own targets take the rounded table of the real function. A runtime that has the function for
int8 makes a table by steps of its own, in float32; what it comes to is computed here, step by step
too. Where it would be more than one from ours, or the runtime has no such function, its file holds
our table, and looks it up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.define.rounding import POLICIES, Policy
from edge.ops.builders import MICROSOFT, CCompiler, OnnxFile, TfliteFile
from edge.ops.integer_spec import IntegerSpec, Operands, same_channels
from fedkit.core.errors import ExportError
from fedkit.core.numerics import Int64s
from fedkit.graph import ir
from fedkit.graph.ops.functions import BY_KIND, Elu, LeakySlope, values_of

EVERY = np.arange(-128, 128)
"""The integers that a table has an entry for, in order."""

_MOST_STEPS = 2.0**24  # of what kernels make integers of
_MOST_SUMMED = 128  # of a sum's steps, for what it adds
_NEAR = 2.0**-13
"""Of a step: that near to the middle between two integers, a float function may fall on either."""
_COARSE = 2.0**-10

Float32s = NDArray[np.float32]
_Float = Callable[[Float32s], Float32s]


def own_table(graph: ir.Graph, op: ir.Op) -> Int64s:
    """Return what our own targets make of each integer: int64 [256] within int8."""
    x, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    results = values_of(op, (EVERY - x.zero_point) * x.scale)
    return _clipped(POLICIES["half_up"].tabulate(results, out, False))


def table(policy: Policy, graph: ir.Graph, op: ir.Op) -> Int64s:
    """Return what each integer becomes under a policy: int64 [256] within int8."""
    if policy.format == "tflite" and (form := _in_tflite(graph, op)):
        return form.table(policy, graph, op)
    if policy.format == "onnx" and (node := _in_onnx(graph, op)):
        return node.table(policy, graph, op)
    return own_table(graph, op)


def _exact(policy: Policy, graph: ir.Graph, op: ir.Op, operands: Operands) -> Int64s:
    return np.asarray(table(policy, graph, op)[operands[0] + 128])


def _clipped(values: Int64s) -> Int64s:
    return np.clip(values, -128, 127)


def _real(graph: ir.Graph, op: ir.Op) -> Float32s:
    """Return what the integers stand for, as a runtime sees them."""
    x = graph.tensors[op.inputs[0]]
    with np.errstate(over="ignore"):  # what is not finite is refused a form
        return (EVERY - x.zero_point).astype(np.float32) * np.float32(x.scale)


def _stepwise(function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> _Float:
    """Return a function that is computed in float64 and rounded once."""

    def compute(x: Float32s) -> Float32s:
        with np.errstate(over="ignore"):
            return function(x.astype(np.float64)).astype(np.float32)

    return compute


def _steps_fit(results: Float32s, out: ir.Tensor) -> bool:
    with np.errstate(all="ignore"):
        steps = np.abs(results * (np.float32(1) / np.float32(out.scale)))
    return bool((steps < _MOST_STEPS).all())  # NaN is not


# TFLite


class _TfliteForm(Protocol):
    """Operators of a .tflite file that stand for a function of int8."""

    def suits(self, graph: ir.Graph, op: ir.Op) -> bool:
        """Whether they can for these attributes and scales."""

    def table(self, policy: Policy, graph: ir.Graph, op: ir.Op) -> Int64s:
        """Return what a runtime makes of each integer."""

    def write(self, file: TfliteFile, op: ir.Op) -> None:
        """Add them."""


@dataclass(frozen=True)
class _Operator:
    """One operator, for which runtimes make a table.

    Attributes:
        code: Its name.
        built_in: What TFLite's own kernel tabulates.
        xnnpack: What XNNPACK does, if it has the operator.
        options: See `TfliteFile.operator`.
        fields: Of the options.
        output: How its output must be quantised, if that is fixed.
        attributes: The only ones that it has, if the kind has some.
    """

    code: str
    built_in: _Float
    xnnpack: _Float | None = None
    options: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    output: ir.Quantization | None = None
    attributes: ir.Attributes | None = None

    def suits(self, graph: ir.Graph, op: ir.Op) -> bool:
        out = graph.tensors[op.output]
        is_same = op.attributes == self.attributes and self.output in (None, out.quantization)
        return is_same and _steps_fit(self.built_in(_real(graph, op)), out)

    def table(self, policy: Policy, graph: ir.Graph, op: ir.Op) -> Int64s:
        is_xnnpack = policy.name == "half_even" and self.xnnpack is not None
        function = self.xnnpack if is_xnnpack and self.xnnpack else self.built_in
        results = function(_real(graph, op))
        return _clipped(policy.tabulate(results, graph.tensors[op.output], is_xnnpack))

    def write(self, file: TfliteFile, op: ir.Op) -> None:
        self.put(file, op.inputs[0], op.output)

    def put(self, file: TfliteFile, x: str, output: str) -> None:
        file.operator(self.code, [x], output, self.options, (1, 1), **self.fields)


@dataclass(frozen=True)
class _Leaky:
    """LEAKY_RELU: XNNPACK has slopes of 8 bits, TFLite's own kernel multiplies."""

    def suits(self, graph: ir.Graph, op: ir.Op) -> bool:
        return isinstance(op.attributes, LeakySlope) and op.attributes.slope >= 0

    def table(self, policy: Policy, graph: ir.Graph, op: ir.Op) -> Int64s:
        x, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
        assert isinstance(op.attributes, LeakySlope)
        return _clipped(policy.leaky(EVERY - x.zero_point, op.attributes.slope, x, out))

    def write(self, file: TfliteFile, op: ir.Op) -> None:
        assert isinstance(op.attributes, LeakySlope)
        slope = op.attributes.slope
        file.operator("LEAKY_RELU", op.inputs, op.output, "LeakyReluOptions", (1, 2), alpha=slope)


_GATE = ir.Quantization((1 / 256,), (-128,))
"""Of what lies between 0 and 1."""


@dataclass(frozen=True)
class _Gated:
    """x times a sigmoid of it, which is rounded to int8 between."""

    gate: _Operator

    def suits(self, graph: ir.Graph, op: ir.Op) -> bool:
        return _product_fits(graph, op) and self.gate.suits(*self._part(graph, op))

    def table(self, policy: Policy, graph: ir.Graph, op: ir.Op) -> Int64s:
        return _times_gate(policy, graph, op, self.gate.table(policy, *self._part(graph, op)))

    def _part(self, graph: ir.Graph, op: ir.Op) -> tuple[ir.Graph, ir.Op]:
        gate = _gate_of(graph, op)
        made = replace(op, outputs=(gate.name,), attributes=None)
        return replace(graph, tensors={**graph.tensors, gate.name: gate}), made

    def write(self, file: TfliteFile, op: ir.Op) -> None:
        gate = file.tensor(_gate_of(file.graph, op))
        self.gate.put(file, op.inputs[0], gate)
        file.operator("MUL", [op.inputs[0], gate], op.output, "MulOptions")


def _gate_of(graph: ir.Graph, op: ir.Op) -> ir.Tensor:
    x = graph.tensors[op.inputs[0]]
    quantization = _GATE if x.quantization else None
    return ir.Tensor(f"{op.output}.gate", x.shape, x.dtype, None, quantization)


def _product_fits(graph: ir.Graph, op: ir.Op) -> bool:
    x, out = graph.tensors[op.inputs[0]], graph.tensors[op.output]
    return x.scale * _GATE.scale[0] <= out.scale / 2


def _times_gate(policy: Policy, graph: ir.Graph, op: ir.Op, gate: Int64s) -> Int64s:
    x, out, right = graph.tensors[op.inputs[0]], graph.tensors[op.output], _gate_of(graph, op)
    products = (EVERY - x.zero_point) * (gate - right.zero_point)
    return _clipped(policy.product(products, x, right, out) + out.zero_point)


@dataclass(frozen=True)
class _HardGated:
    """x times what x / 6 + 1/2 is, cut off at 0 and 1; HARD_SWISH itself is 20 times as slow.

    The first product only says the scale anew: its integers are those of x.
    """

    def suits(self, graph: ir.Graph, op: ir.Op) -> bool:
        x, *_ = self._tensors(graph, op)
        sums = (EVERY - x.zero_point) * (x.scale / 6 / _GATE.scale[0])
        # LiteRT's own kernels for one number and a tensor take the other side of some ties.
        is_tied = (np.abs(sums - np.floor(sums) - 0.5)[np.abs(sums) < 130] < 2**-10).any()
        is_small = x.scale / 6 < _MOST_SUMMED * _GATE.scale[0]
        return _product_fits(graph, op) and is_small and not is_tied

    def table(self, policy: Policy, graph: ir.Graph, op: ir.Op) -> Int64s:
        x, sixth, by_sixth, half, gate = self._tensors(graph, op)
        scaled = policy.product(127 * (EVERY - x.zero_point), x, sixth, by_sixth)
        scaled = _clipped(scaled + x.zero_point) - x.zero_point
        total = policy.add(scaled, np.full(256, 127), by_sixth, half, gate)
        return _times_gate(policy, graph, op, _clipped(total + gate.zero_point))

    def _tensors(self, graph: ir.Graph, op: ir.Op) -> Sequence[ir.Tensor]:
        """Return x, 1/6, x / 6, 1/2, and the gate."""
        x = graph.tensors[op.inputs[0]]
        rank, by_sixth = len(x.shape), float(np.float32(x.scale / 6))
        constants = [
            ir.Tensor(
                f"{op.output}.{name}",
                (1,) * rank,
                "int8",
                np.full((1,) * rank, 127, np.int8),
                ir.Quantization((float(np.float32(value / 127)),), (0,)),
            )
            for name, value in (("sixth", 1 / 6), ("half", 0.5))
        ]
        scaled = ir.Quantization((by_sixth,), (x.zero_point,))
        between = ir.Tensor(f"{op.output}.by_sixth", x.shape, "int8", None, scaled)
        return x, constants[0], between, constants[1], _gate_of(graph, op)

    def write(self, file: TfliteFile, op: ir.Op) -> None:
        x, *others = self._tensors(file.graph, op)
        sixth, by_sixth, half, gate = map(file.tensor, others)
        file.operator("MUL", [x.name, sixth], by_sixth, "MulOptions")
        file.operator("ADD", [by_sixth, half], gate, "AddOptions")
        file.operator("MUL", [x.name, gate], op.output, "MulOptions")


def _float_logistic(x: Float32s) -> Float32s:
    with np.errstate(over="ignore"):
        power = np.exp(-x.astype(np.float64)).astype(np.float32)
    return np.asarray(np.float32(1) / (np.float32(1) + power))


def _float_gelu(x: Float32s) -> Float32s:
    from scipy.special import erfc

    inner = x * np.float32(-math.sqrt(0.5))
    outer = erfc(inner.astype(np.float64)).astype(np.float32)
    return np.asarray((np.float32(0.5) * x) * outer)


def _float_gelu_tanh(x: Float32s) -> Float32s:
    with np.errstate(over="ignore", invalid="ignore"):
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * (x * x * x))
        outer = np.float32(1) + np.tanh(inner.astype(np.float64)).astype(np.float32)
        return np.asarray((np.float32(0.5) * x) * outer)


def _of(kind: ir.Kind, attributes: ir.Attributes | None = None) -> _Float:
    """Return a function, rounded once."""
    op = ir.Op(kind, ("x",), ("y",), attributes=attributes)
    return _stepwise(lambda x: values_of(op, x))


_LOGISTIC = _Operator("LOGISTIC", _float_logistic, _of("sigmoid"), output=_GATE)
_TANH = _of("tanh")

_TFLITE: Mapping[ir.Kind, _TfliteForm] = {
    "sigmoid": _LOGISTIC,
    "tanh": _Operator("TANH", _TANH, _TANH, output=ir.Quantization((1 / 128,), (0,))),
    "elu": _Operator("ELU", _of("elu", Elu()), _of("elu", Elu()), attributes=Elu()),
    "gelu": _Operator("GELU", _float_gelu, None, "GeluOptions", {"approximate": False}),
    "gelu_tanh": _Operator("GELU", _float_gelu_tanh, None, "GeluOptions", {"approximate": True}),
    "exp": _Operator("EXP", _of("exp"), None, "ExpOptions"),
    "leaky_relu": _Leaky(),
    "silu": _Gated(_LOGISTIC),
    "hard_swish": _HardGated(),
}


def _in_tflite(graph: ir.Graph, op: ir.Op) -> _TfliteForm | None:
    """Return operators that are at most one from our table in all runtimes."""
    form = _TFLITE.get(op.kind)
    if form is None or not form.suits(graph, op):
        return None
    own = own_table(graph, op)
    tables = [
        form.table(policy, graph, op) for policy in POLICIES.values() if policy.format == "tflite"
    ]
    return form if all(np.abs(each - own).max() <= 1 for each in tables) else None


def _write_tflite(file: TfliteFile, op: ir.Op) -> None:
    if file.graph.tensors[op.output].dtype == "float32":
        _write_real_tflite(file, op)
    elif form := _in_tflite(file.graph, op):
        form.write(file, op)
    else:
        _look_up_tflite(file, op)


def _look_up_tflite(file: TfliteFile, op: ir.Op) -> None:
    x = file.graph.tensors[op.inputs[0]]
    values = own_table(file.graph, op).astype(np.int8)
    quantization = file.graph.tensors[op.output].quantization
    entries = file.tensor(ir.Tensor(f"{op.output}.table", (256,), "int8", values, quantization))
    wide = file.cast(x, f"{op.output}.wide", "int32")
    index = file.tensor(ir.Tensor(f"{op.output}.index", x.shape, "int32"))
    first = file.constant(f"{op.output}.first", [128])
    file.operator("ADD", [wide, first], index, "AddOptions", (1, 1))
    file.operator("GATHER", [entries, index], op.output, "GatherOptions", (1, 2))


def _write_real_tflite(file: TfliteFile, op: ir.Op) -> None:
    """Write a function of floats, with which numbers are compared."""
    form = _TFLITE.get(op.kind)
    codes = {"hard_swish": ("HARD_SWISH", "HardSwishOptions"), "abs": ("ABS", "AbsOptions")}
    is_operator = isinstance(form, _Operator) and form.attributes == op.attributes
    if form and (is_operator or isinstance(form, _Gated | _Leaky)):
        form.write(file, op)
    elif op.kind in codes:
        code, options = codes[op.kind]
        file.operator(code, op.inputs, op.output, options, (1, 1))
    else:
        raise ExportError(
            f"op {op.kind} of module {op.source!r} has no TFLite form of floats; quantise the graph"
        )


# ONNX


@dataclass(frozen=True)
class _Nodes:
    """Operators of ONNX between floats.

    Attributes:
        names: Of each in turn; the last of two is a product with x.
        function: What they compute, rounded where they do.
        attributes: Of the first.
        integer: The operator of integers that onnxruntime has in their place.
        possible: Whether they can have an op's attributes.
        least: What steps of the output are at least: where it takes the difference of numbers near
            1, a float function is precise to some 1e-7 only.
    """

    names: tuple[str, ...]
    function: Callable[[ir.Op], _Float]
    attributes: Callable[[Any], Mapping[str, float]] = lambda a: {}
    integer: str = ""
    possible: Callable[[Any], bool] = lambda a: True
    least: float = 0.0

    def suits(self, graph: ir.Graph, op: ir.Op) -> bool:
        """Whether runtimes surely give the same integers: none is near the middle of two."""
        out, results = graph.tensors[op.output], self.function(op)(_real(graph, op))
        is_precise = out.scale >= self.least and _steps_fit(results, out)
        if not (self.possible(op.attributes) and is_precise):
            return False
        steps = results.astype(np.float64) / out.scale
        held = (steps + out.zero_point > -130) & (steps + out.zero_point < 130)
        return not (np.abs(steps - np.floor(steps) - 0.5)[held] < _NEAR).any()

    def table(self, policy: Policy, graph: ir.Graph, op: ir.Op) -> Int64s:
        """Return what a runtime makes of each integer."""
        results = self.function(op)(_real(graph, op))
        return _clipped(policy.tabulate(results, graph.tensors[op.output], False))

    def write(self, file: OnnxFile, op: ir.Op) -> None:
        """Add them, in the form of the file."""
        attributes: dict[str, Any] = dict(self.attributes(op.attributes))
        if self.integer and file.is_integer:
            operands = [op.inputs[0], *file.scales(op.inputs[0]), *file.scales(op.output)]
            file.node(self.integer, operands, op.output, MICROSOFT, **attributes)
            return
        x = file.dequantised(op, 0)
        value = file.node(self.names[0], [x], f"{op.output}.real", **attributes)
        for name in self.names[1:]:
            value = file.node(name, [x, value], f"{op.output}.product")
        file.quantised(op, value, op.output)


def _rounded_once(op: ir.Op) -> _Float:
    return _of(op.kind, op.attributes)


def _silu_by_steps(op: ir.Op) -> _Float:
    return lambda x: x * _of("sigmoid")(x)


_ONNX: Mapping[ir.Kind, _Nodes] = {
    "sigmoid": _Nodes(("Sigmoid",), _rounded_once, integer="QLinearSigmoid"),
    "tanh": _Nodes(("Tanh",), _rounded_once),
    "silu": _Nodes(("Sigmoid", "Mul"), _silu_by_steps, least=_COARSE),
    "hard_sigmoid": _Nodes(
        ("HardSigmoid",), _rounded_once, lambda a: {"alpha": a.slope, "beta": a.offset}
    ),
    "hard_swish": _Nodes(("HardSwish",), _rounded_once),
    "elu": _Nodes(
        ("Selu",),
        _rounded_once,
        lambda a: {"alpha": a.alpha, "gamma": a.gamma},
        possible=lambda a: a.rate == 1,
        least=_COARSE,
    ),
    "leaky_relu": _Nodes(
        ("LeakyRelu",), _rounded_once, lambda a: {"alpha": a.slope}, "QLinearLeakyRelu"
    ),
    "softplus": _Nodes(
        ("Softplus",),
        _rounded_once,
        possible=lambda a: a.beta == 1 and a.threshold >= 20,
        least=_COARSE,
    ),
    "exp": _Nodes(("Exp",), _rounded_once),
    "erf": _Nodes(("Erf",), _rounded_once, least=_COARSE),
    "abs": _Nodes(("Abs",), _rounded_once),
}


def _in_onnx(graph: ir.Graph, op: ir.Op) -> _Nodes | None:
    nodes = _ONNX.get(op.kind)
    if nodes is None or not nodes.suits(graph, op):
        return None
    gap = nodes.table(POLICIES["onnxruntime"], graph, op) - own_table(graph, op)
    return nodes if np.abs(gap).max() <= 1 else None


def _write_onnx(file: OnnxFile, op: ir.Op) -> None:
    if nodes := _in_onnx(file.graph, op):
        nodes.write(file, op)
        return
    # Of a table of 256, entry -1 is the last: those from 128 on stand for the integers below 0.
    values = np.roll(own_table(file.graph, op), 128).astype(np.int8)
    index = file.cast(op.inputs[0], f"{op.output}.index", np.int32)
    file.node("Gather", [file.constant(f"{op.output}.table", values), index], op.output)


# C


def _c99(c: CCompiler, op: ir.Op) -> None:
    c.look_up(op, own_table(c.graph, op) + 128)


SPECS = tuple(
    IntegerSpec(
        kind,
        _exact,
        same_channels,
        tflite=_write_tflite,
        onnx=_write_onnx,
        c99=_c99,
    )
    for kind in BY_KIND
)
