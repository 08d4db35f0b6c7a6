"""Functions of one value at a time: sigmoid, SiLU, GELU and their like.

Each is defined once, in float64, and evaluated there; edge tabulates the same definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.graph import ir
from fedkit.graph.operands import activation, constant, require
from fedkit.graph.ops.arithmetic import affine
from fedkit.graph.ops.elementwise import CLAMP, Bounds
from fedkit.graph.spec import (
    Aten,
    ModelReader,
    Onnx,
    OnnxNode,
    Random,
    Spec,
    any_shape,
    graph_of,
)

Floats = NDArray[np.float64]
Arguments = Mapping[str, Any]

_CUBE_OF_GELU = 0.044715
_SELU = 1.6732632423543772, 1.0507009873554805


@dataclass(frozen=True)
class Elu(ir.Attributes):
    """gamma * x above 0, gamma * alpha * (exp(rate * x) - 1) below: ELU, SELU and CELU."""

    alpha: float = 1.0
    gamma: float = 1.0
    rate: float = 1.0


@dataclass(frozen=True)
class LeakySlope(ir.Attributes):
    """What a leaky ReLU multiplies negative values by."""

    slope: float


@dataclass(frozen=True)
class Line(ir.Attributes):
    """slope * x + offset, before it is cut off."""

    slope: float
    offset: float


@dataclass(frozen=True)
class Bend(ir.Attributes):
    """A softplus is log(1 + exp(beta * x)) / beta, and x where beta * x is above a threshold."""

    beta: float = 1.0
    threshold: float = 20.0


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)))


def _erf(x: Floats) -> Floats:
    from scipy.special import erf  # which few models need, and takes its time

    return np.asarray(erf(x))


def _gelu(x: Floats) -> Floats:
    return 0.5 * x * (1 + _erf(x * math.sqrt(0.5)))


def _gelu_tanh(x: Floats) -> Floats:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + _CUBE_OF_GELU * x**3))))


def _elu(x: Floats, alpha: float, gamma: float, rate: float) -> Floats:
    return np.where(x > 0, gamma * x, gamma * alpha * np.expm1(rate * np.minimum(x, 0)))


def _leaky(x: Floats, slope: float) -> Floats:
    return np.where(x >= 0, x, slope * x)


def _hard_sigmoid(x: Floats, slope: float, offset: float) -> Floats:
    return np.clip(slope * x + offset, 0, 1)


def _hard_swish(x: Floats) -> Floats:
    return x * np.clip(x / 6 + 0.5, 0, 1)


def _softplus(x: Floats, beta: float, threshold: float) -> Floats:
    return np.where(beta * x > threshold, x, np.logaddexp(0, beta * x) / beta)


def _log_sigmoid(x: Floats) -> Floats:
    return np.asarray(np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))))


def _mish(x: Floats) -> Floats:
    return np.asarray(x * np.tanh(np.logaddexp(0, x)))


@dataclass(frozen=True)
class Function:
    """A function of one value.

    Attributes:
        kind: Its name.
        layer: What messages call it.
        of: (values, attributes in order) -> results; in float64, of any shape.
        bounds: What it stays within, whatever it is given, if it is known: its range once integer.
        attributes: Some that are possible; their class is the kind's.
        aten: Operator of torch's ATen -> the attributes that its arguments mean.
        onnx: Operator of ONNX -> the attributes that a node means.
    """

    kind: str
    layer: str
    of: Callable[..., Floats]
    bounds: tuple[float, float] | None = None
    attributes: tuple[ir.Attributes, ...] = ()
    aten: Mapping[str, Callable[[Arguments], ir.Attributes | None]] = field(default_factory=dict)
    onnx: Mapping[str, Callable[[OnnxNode], ir.Attributes | None]] = field(default_factory=dict)


def _plain(*names: str) -> dict[str, Callable[[Any], None]]:
    """Return operators that have no attributes."""
    return dict.fromkeys(names, lambda _: None)


def _both(name: str) -> tuple[str, str]:
    """Return the two spellings of an operator, of which the latter works in place."""
    return f"aten.{name}.default", f"aten.{name}_.default"


def _each(*names: str) -> list[str]:
    return [spelling for name in names for spelling in _both(name)]


def _is_tanh(a: Arguments) -> bool:
    how = a.get("approximate", "none")
    require(how in ("none", "tanh"), f"GELU with approximate = {how!r}; 'none' and 'tanh' can be")
    return bool(how == "tanh")


FUNCTIONS = (
    Function(
        "sigmoid",
        "sigmoid",
        _sigmoid,
        bounds=(0.0, 255 / 256),
        aten=_plain(*_each("sigmoid", "special_expit")),
        onnx=_plain("Sigmoid"),
    ),
    Function(
        "tanh",
        "tanh",
        np.tanh,
        bounds=(-1.0, 127 / 128),
        aten=_plain(*_each("tanh")),
        onnx=_plain("Tanh"),
    ),
    Function("silu", "SiLU", lambda x: x * _sigmoid(x), aten=_plain(*_each("silu"))),
    Function("gelu", "GELU", _gelu),
    Function("gelu_tanh", "GELU", _gelu_tanh),
    Function(
        "hard_sigmoid",
        "hard-sigmoid",
        _hard_sigmoid,
        bounds=(0.0, 255 / 256),
        attributes=(Line(1 / 6, 0.5), Line(0.2, 0.5)),
        aten=dict.fromkeys(_each("hardsigmoid"), lambda _: Line(1 / 6, 0.5)),
        onnx={
            "HardSigmoid": lambda node: Line(
                float(node.attribute("alpha", 0.2)), float(node.attribute("beta", 0.5))
            )
        },
    ),
    Function(
        "hard_swish",
        "hard-swish",
        _hard_swish,
        aten=_plain(*_each("hardswish")),
        onnx=_plain("HardSwish"),
    ),
    Function(
        "elu",
        "ELU",
        _elu,
        attributes=(Elu(), Elu(0.5), Elu(*_SELU), Elu(2.0, 1.0, 0.5)),
        aten={
            **dict.fromkeys(
                _each("elu"),
                lambda a: Elu(float(a["alpha"]), float(a["scale"]), float(a["input_scale"])),
            ),
            **dict.fromkeys(_each("selu"), lambda _: Elu(*_SELU)),
            **dict.fromkeys(_each("celu"), lambda a: _celu(float(a["alpha"]))),
        },
        onnx={
            "Elu": lambda node: Elu(float(node.attribute("alpha", 1.0))),
            "Selu": lambda node: Elu(
                float(node.attribute("alpha", _SELU[0])), float(node.attribute("gamma", _SELU[1]))
            ),
            "Celu": lambda node: _celu(float(node.attribute("alpha", 1.0))),
        },
    ),
    Function(
        "leaky_relu",
        "leaky ReLU",
        _leaky,
        attributes=(LeakySlope(0.01), LeakySlope(0.25), LeakySlope(-0.5)),
        aten={
            **dict.fromkeys(_each("leaky_relu"), lambda a: LeakySlope(float(a["negative_slope"]))),
        },
        onnx={
            "LeakyRelu": lambda node: LeakySlope(float(node.attribute("alpha", 0.01))),
        },
    ),
    Function(
        "softplus",
        "softplus",
        _softplus,
        attributes=(Bend(), Bend(2.0, 1.0)),
        aten=dict.fromkeys(
            ["aten.softplus.default"], lambda a: _bend(float(a["beta"]), float(a["threshold"]))
        ),
        onnx={"Softplus": lambda _: Bend()},
    ),
    Function("exp", "exp", np.exp, aten=_plain(*_each("exp")), onnx=_plain("Exp")),
    Function("log_sigmoid", "log-sigmoid", _log_sigmoid, aten=_plain("aten.log_sigmoid.default")),
    Function("mish", "Mish", _mish, aten=_plain(*_each("mish")), onnx=_plain("Mish")),
    Function(
        "erf", "erf", _erf, bounds=(-1.0, 127 / 128), aten=_plain(*_each("erf")), onnx=_plain("Erf")
    ),
    Function("abs", "abs", np.abs, aten=_plain(*_each("abs")), onnx=_plain("Abs")),
    Function(
        "clip",
        "clamp",
        np.clip,
        attributes=(Bounds(-1.0, 1.0), Bounds(-0.25, 3.0), Bounds(None, 0.5)),
    ),
)


def _celu(alpha: float) -> Elu:
    require(alpha != 0, "CELU with alpha = 0, which divides by it")
    return Elu(alpha, 1.0, 1 / alpha)


def _bend(beta: float, threshold: float) -> Bend:
    require(beta > 0, f"Softplus with beta = {beta}; it must be above 0")
    return Bend(beta, threshold)


BY_KIND: Mapping[ir.Kind, Function] = {function.kind: function for function in FUNCTIONS}


def values_of(op: ir.Op, x: Floats) -> Floats:
    """Return what an op of this file makes of values, in float64; infinite beyond its range."""
    attributes = () if op.attributes is None else astuple(op.attributes)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(BY_KIND[op.kind].of(x, *attributes), np.float64)


def _real(op: ir.Op, graph: ir.Graph, x: ir.FloatArray) -> ir.FloatArray:
    with np.errstate(over="ignore"):  # calibration names what is not finite
        return values_of(op, x.astype(np.float64)).astype(np.float32)


def _example(function: Function, random: Random) -> ir.Graph:
    shape, chosen = any_shape(random), function.attributes
    attributes = chosen[int(random.integers(len(chosen)))] if chosen else None
    return graph_of((shape, shape), (), ir.Op(function.kind, ("x",), ("y",), attributes=attributes))


def _read_aten(kind: ir.Kind, attributes: Callable[[Arguments], ir.Attributes | None]) -> Aten:
    def read(reader: ModelReader, node: Any, a: Arguments) -> ir.Tensor:
        return reader.op(kind, node, [activation(a["self"])], attributes=attributes(a))

    return read


def _read_onnx(kind: ir.Kind, attributes: Callable[[OnnxNode], ir.Attributes | None]) -> Onnx:
    def read(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
        x = activation(node.inputs[0])
        return reader.op(kind, node, [x], attributes=attributes(node))

    return read


def _read_gelu(reader: ModelReader, node: Any, a: Arguments) -> ir.Tensor:
    return reader.op("gelu_tanh" if _is_tanh(a) else "gelu", node, [activation(a["self"])])


def _read_gelu_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    arguments = {"approximate": node.attribute("approximate", "none")}
    return _read_gelu(reader, node, {"self": node.inputs[0], **arguments})


def _add_leaky(reader: ModelReader, node: Any, x: ir.Tensor, slopes: Any) -> ir.Tensor:
    """Add a leaky ReLU; with a slope per channel as a * x + (1 - a) * relu(x)."""
    values = np.asarray(constant(slopes, "slopes"), np.float64).ravel()
    require(len(values) in (1, x.shape[-1]), f"{len(values)} slopes for {x.shape[-1]} channels")
    if (values == values[0]).all():
        slope = LeakySlope(float(values[0]))
        return reader.op("leaky_relu", node, [x], attributes=slope)
    require(not reader.trains, "a slope per channel; one for all can be")
    positive = reader.op("relu", node, [x], suffix=".positive")
    none = np.zeros_like(values)
    terms = affine(reader, node, x, values, none), affine(reader, node, positive, 1 - values, none)
    return reader.op("add", node, terms)


def _read_prelu(reader: ModelReader, node: Any, a: Arguments) -> ir.Tensor:
    return _add_leaky(reader, node, activation(a["self"]), a["weight"])


def _read_prelu_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    return _add_leaky(reader, node, activation(node.operand(0)), node.operand(1))


_GELU: dict[str, Any] = {
    "aten": dict.fromkeys(_each("gelu"), _read_gelu),
    "onnx": {"Gelu": _read_gelu_onnx},
}
_READERS: Mapping[ir.Kind, dict[str, Any]] = {
    "gelu": _GELU,
    "gelu_tanh": _GELU,
    "clip": CLAMP,
    "leaky_relu": {
        "aten": {"aten.prelu.default": _read_prelu},
        "onnx": {"PRelu": _read_prelu_onnx},
    },
}
"""What reads operators of which more than attributes depends on the arguments."""


def _spec(function: Function) -> Spec:
    kind, attributes = function.kind, function.attributes
    more = _READERS.get(kind, {"aten": {}, "onnx": {}})
    aten = {name: _read_aten(kind, means) for name, means in function.aten.items()}
    onnx = {name: _read_onnx(kind, means) for name, means in function.onnx.items()}
    return Spec(
        kind,
        function.layer,
        _real,
        partial(_example, function),
        scale="free",
        bounds=function.bounds,
        attributes=type(attributes[0]) if attributes else None,
        of_one_place=True,
        aten={**aten, **more["aten"]},
        onnx={**onnx, **more["onnx"]},
    )


SPECS = tuple(map(_spec, FUNCTIONS))
