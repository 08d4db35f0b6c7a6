"""Normalisation layers, with their statistics and parameters.

Of norms over the batch, and of layer norms over a whole example, the training plan alone is made.
In evaluation a norm over the batch is an affine op, and such a layer norm a group norm of one
group. A group norm, and a norm over the channels of each place, are the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fedkit.core.numerics import K
from fedkit.graph import ir
from fedkit.graph.layouts import model_shape
from fedkit.graph.operands import activation, constant, rank_of, require, vector
from fedkit.graph.ops.arithmetic import affine
from fedkit.graph.ops.spread import beside
from fedkit.graph.spec import (
    Aten,
    ModelReader,
    Onnx,
    OnnxNode,
    Random,
    Spec,
    an_activation,
    any_shape,
    graph_of,
)
from fedkit.graph.spelt_norms import SpeltNorm
from fedkit.graph.tokens import channels_as_last, last_as_channels

FloatArray = ir.FloatArray
Spread = Callable[[FloatArray, float], FloatArray]
"""(variance, or mean absolute deviation; eps) -> what is divided by."""


@dataclass(frozen=True)
class Groups(ir.Epsilon):
    """How a group norm divides the channels: into so many groups, each of as many in a row."""

    groups: int


@dataclass(frozen=True)
class OfPlace(ir.Epsilon):
    """How the channels of each place are normalised: by their deviation from their mean, or from 0.

    The latter is an RMS norm.
    """

    centred: bool = True


@dataclass(frozen=True)
class NormBlocks:
    """What a norm divides by one number each.

    Attributes:
        groups: Into how many the channels fall.
        over: The axes of `parted` values over which a block is: (1, 3), or (3,) of each place.
        centred: Whether the mean is taken off before.
    """

    groups: int
    over: tuple[int, ...]
    centred: bool


def blocks_of(op: ir.Op) -> NormBlocks:
    """Return what a group norm, or one over the channels of each place, divides."""
    if isinstance(op.attributes, Groups):
        return NormBlocks(op.attributes.groups, (1, 3), True)
    assert isinstance(op.attributes, OfPlace)  # the verifier's rule
    return NormBlocks(1, (3,), op.attributes.centred)


def parted(x: ir.Array, groups: int) -> ir.Array:
    """Return [n, ..., channels] as [n, pixels, groups, channels of a group]."""
    return x.reshape(len(x), -1, groups, x.shape[-1] // groups)


def _of_blocks(
    op: ir.Op, graph: ir.Graph, x: FloatArray, weight: FloatArray, bias: FloatArray
) -> FloatArray:
    """Normalise each block of an example by its own mean and deviation."""
    how = blocks_of(op)
    values = parted(x, how.groups).astype(np.float64)
    centred = values - how.centred * values.mean(how.over, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(how.over, keepdims=True) + _eps(op))
    return np.asarray((centred / spread).reshape(x.shape) * weight + bias, np.float32)


def _batch(
    absolute: bool,
    op: ir.Op,
    graph: ir.Graph,
    x: FloatArray,
    mean: FloatArray,
    variance: FloatArray,
    weight: FloatArray,
    bias: FloatArray,
) -> FloatArray:
    """Normalise each channel by its running statistics."""
    eps = _eps(op)
    spread = np.sqrt(variance) + eps if absolute else np.sqrt(variance + eps)
    return (x - mean) / spread * weight + bias


def _layer(
    absolute: bool,
    op: ir.Op,
    graph: ir.Graph,
    x: FloatArray,
    weight: FloatArray,
    bias: FloatArray,
) -> FloatArray:
    """Normalise a whole example by its own mean and deviation."""
    axes, eps = tuple(range(1, x.ndim)), _eps(op)
    centred = x - x.mean(axes, keepdims=True)
    if absolute:
        spread = np.float32(K) * np.abs(centred).mean(axes, keepdims=True) + eps
    else:
        spread = np.sqrt(np.square(centred).mean(axes, keepdims=True) + eps)
    return np.asarray(centred / spread * weight + bias, np.float32)


def _eps(op: ir.Op) -> np.float32:
    assert isinstance(op.attributes, ir.Epsilon)  # the verifier's rule
    return np.float32(op.attributes.eps)


def _batch_operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    return [(shapes[0][-1],)] * 4


def _layer_operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    return [shapes[0][1:]] * 2


def _group_operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    return [shapes[0][-1:]] * 2


def _group_rules(graph: ir.Graph, op: ir.Op) -> Iterator[str]:
    groups, channels = blocks_of(op).groups, graph.tensors[op.inputs[0]].shape[-1]
    if groups < 1 or channels % groups:
        yield f"has {groups} groups for {channels} channels"
    yield from _eps_rules(graph, op)


def _eps_rules(graph: ir.Graph, op: ir.Op) -> Iterator[str]:
    if not 0 < float(_eps(op)) < np.inf:
        yield f"adds {_eps(op)} to its variance; it must be above 0, and finite"


def _group_example(random: Random) -> ir.Graph:
    *start, channels = any_shape(random)
    groups = int(random.choice([each for each in range(1, channels + 1) if channels % each == 0]))
    shape = (*start, channels)
    constants = random.standard_normal(channels), random.standard_normal(channels)
    activation, how = an_activation(random), Groups(1e-3, groups)
    op = ir.Op("group_norm", ("x", "c0", "c1"), ("y",), activation=activation, attributes=how)
    return graph_of((shape, shape), constants, op)


def _place_example(random: Random) -> ir.Graph:
    shape = any_shape(random)
    constants = list(random.standard_normal((2, shape[-1])))
    activation, how = an_activation(random), OfPlace(1e-3, bool(random.random() < 0.6))
    names = ("x", "c0", "c1")
    op = ir.Op("channel_norm", names, ("y",), activation=activation, attributes=how)
    return graph_of((shape, shape), constants, op)


def _example(kind: ir.Kind, constants: int, random: Random) -> ir.Graph:
    shape = any_shape(random)
    of_each = shape[1:] if constants == 2 else shape[-1:]
    values = [np.abs(random.standard_normal(of_each)) + 0.1 for _ in range(constants)]
    names = ("x", *(f"c{number}" for number in range(constants)))
    return graph_of((shape, shape), values, ir.Op(kind, names, ("y",), attributes=ir.Epsilon(1e-3)))


class _BatchNorm(NamedTuple):
    """What a model says of one; its weight and bias may be None."""

    mean: Any
    variance: Any
    weight: Any
    bias: Any
    eps: float
    absolute: bool = False


def _read_batch_norm(
    absolute: bool, reader: ModelReader, node: Any, a: Mapping[str, Any]
) -> ir.Tensor:
    has_none = a["running_mean"] is None or a["training"]
    require(not has_none, "batch norm without running statistics")
    x = activation(a["input"], 4 if absolute else None)
    statistics = a["running_mean"], a["running_var"]
    norm = _BatchNorm(*statistics, a["weight"], a["bias"], a["eps"], absolute)
    return (_trained if reader.trains else _evaluated)(reader, node, x, norm)


def _read_rep_batch_norm(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    """Add a batch norm and eta times what it reads: in evaluation one scale and shift."""
    x, eta = activation(a["input"]), a["eta"]
    norm = _BatchNorm(a["running_mean"], a["running_var"], a["weight"], a["bias"], a["eps"])
    if not reader.trains:
        return _evaluated(reader, node, x, norm, constant(eta))
    of_batch = _trained(reader, node, x, norm, ".norm")
    given, share, _ = beside(reader, node, x, eta, rank_of(reader, node))
    shared = reader.op("mul", node, [given, share], x.shape, suffix=".share")
    return reader.op("add", node, [of_batch, shared], x.shape)


def _read_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    x = activation(node.operand(0))
    trains = node.attribute("training_mode", 0) or not node.attribute("spatial", 1)
    require(not trains, "BatchNormalization in training, or with statistics per pixel")
    weight, bias, mean, variance = (vector(node, index, x.shape[-1]) for index in range(1, 5))
    eps = float(node.attribute("epsilon", 1e-5))
    return _evaluated(reader, node, x, _BatchNorm(mean, variance, weight, bias, eps))


def _trained(
    reader: ModelReader, node: Any, x: ir.Tensor, norm: _BatchNorm, suffix: str = ""
) -> ir.Tensor:
    mean, variance = constant(norm.mean, "statistics"), constant(norm.variance, "statistics")
    operands = [
        x,
        reader.constant(node, "mean", mean, norm.mean),
        reader.constant(node, "variance", variance, norm.variance),
        _or(reader, node, "weight", norm.weight, np.ones(len(mean))),
        _or(reader, node, "bias", norm.bias, np.zeros(len(mean))),
    ]
    kind = "l1_batch_norm" if norm.absolute else "batch_norm"
    return reader.op(kind, node, operands, suffix=suffix, attributes=ir.Epsilon(norm.eps))


def _or(reader: ModelReader, node: Any, what: str, value: Any, instead: ir.Array) -> ir.Tensor:
    """Add a constant of an op that may do without it."""
    array = instead if value is None else constant(value, _PLURALS[what])
    return reader.constant(node, what, array, value)


_PLURALS = {"weight": "weights", "bias": "biases"}


def _evaluated(
    reader: ModelReader, node: Any, x: ir.Tensor, norm: _BatchNorm, more: Any = 0.0
) -> ir.Tensor:
    """Add the scale and shift that a norm is in evaluation; `more` is added to the scale."""
    mean = constant(norm.mean, "statistics").astype(np.float64)
    variance = constant(norm.variance, "statistics").astype(np.float64)
    eps, absolute = norm.eps, norm.absolute
    with np.errstate(divide="ignore", invalid="ignore"):  # `verify` names the result
        scale = 1 / (np.sqrt(variance) + eps if absolute else np.sqrt(variance + eps))
        scale = scale if norm.weight is None else scale * constant(norm.weight)
        shift = -mean * scale if norm.bias is None else constant(norm.bias) - mean * scale
    return affine(reader, node, x, scale + more, shift)


def _read_layer_norm(
    absolute: bool, reader: ModelReader, node: Any, a: Mapping[str, Any]
) -> ir.Tensor:
    """Add a layer norm over the last axis, or a whole example: [c, h, w], [c, length], [features].

    Of one over features a plan holds the latter.
    """
    x, over = activation(a["input"]), tuple(a["normalized_shape"])
    rank = rank_of(reader, node)
    whole = model_shape(x.shape, rank)
    if not absolute and len(over) == 1 and (rank > 2 or not reader.trains):
        return _over_last(reader, node, x, a["weight"], a["bias"], OfPlace(a["eps"]))
    _require_whole(over, whole)
    require(reader.trains or not absolute, "an L1 layer norm; layer norms can be")
    if not reader.trains:
        return _whole_example(reader, node, x, a["weight"], a["bias"], a["eps"])
    operands = [x]
    for what, instead in (("weight", np.ones), ("bias", np.zeros)):
        array = instead(whole) if a[what] is None else constant(a[what], _PLURALS[what])
        laid = ir.to_graph_layout(np.asarray(array)[None])[0]
        operands.append(reader.constant(node, what, laid, a[what]))
    kind = "l1_layer_norm" if absolute else "layer_norm"
    return reader.op(kind, node, operands, attributes=ir.Epsilon(a["eps"]))


def _require_whole(over: Sequence[int], whole: Sequence[int]) -> None:
    can_be = f"the last axis, or a whole example, {tuple(whole)}, can be"
    require(tuple(over) == tuple(whole), f"a layer norm over {tuple(over)}; {can_be}")


def _read_rms_norm(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    over = tuple(a["normalized_shape"])
    require(len(over) == 1, f"an RMS norm over {over}; the last axis can be")
    eps = float(np.finfo(np.float32).eps) if a["eps"] is None else a["eps"]
    x = activation(a["input"])
    return _over_last(reader, node, x, a["weight"], None, OfPlace(eps, centred=False))


def _over_last(
    reader: ModelReader, node: Any, x: ir.Tensor, weight: Any, bias: Any, how: OfPlace
) -> ir.Tensor:
    """Add a norm over the last axis of the model; weight and bias may be None."""
    laid = last_as_channels(reader, node, x)
    is_flat = laid is x
    made = _over_channels(reader, node, laid, weight, bias, how, "" if is_flat else ".of_tokens")
    return channels_as_last(reader, node, made)


def _over_channels(
    reader: ModelReader,
    node: Any,
    x: ir.Tensor,
    weight: Any,
    bias: Any,
    how: OfPlace,
    suffix: str = "",
) -> ir.Tensor:
    """Add a norm over the channels of each place; weight and bias, per channel, may be None."""
    _require_eps(how)
    channels = x.shape[-1]
    operands = [
        x,
        _or(reader, node, "weight", weight, np.ones(channels)),
        _or(reader, node, "bias", bias, np.zeros(channels)),
    ]
    for operand in operands[1:]:
        fits = operand.shape == (channels,)
        require(fits, f"parameters of shape {operand.shape} for {channels} channels")
    return reader.op("channel_norm", node, operands, x.shape, suffix=suffix, attributes=how)


def _whole_example(
    reader: ModelReader, node: Any, x: ir.Tensor, weight: Any, bias: Any, eps: float
) -> ir.Tensor:
    """Add a layer norm over a whole example, whose weight and bias are per place."""
    norm = _grouped(reader, node, x, None, None, Groups(eps, 1))
    for what, kind, value in (("weight", "mul", weight), ("bias", "add", bias)):
        if value is not None:
            laid = ir.to_graph_layout(np.asarray(constant(value, _PLURALS[what]))[None])
            operand = reader.constant(node, f"of_places.{what}", laid, value)
            norm = reader.op(kind, node, [norm, operand], x.shape, suffix=f".{what}")
    return norm


def _require_eps(how: ir.Epsilon) -> None:
    is_known = bool(0 < np.float32(how.eps) < np.inf)
    require(is_known, f"a norm with eps = {how.eps}; it must be above 0")


def _read_group_norm(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x = activation(a["input"])
    return _grouped(reader, node, x, a["weight"], a["bias"], Groups(a["eps"], a["num_groups"]))


def _read_instance_norm(reader: ModelReader, node: Any, a: Mapping[str, Any]) -> ir.Tensor:
    x = activation(a["input"], 4)
    if a["use_input_stats"]:
        how = Groups(a["eps"], x.shape[-1])
        return _grouped(reader, node, x, a["weight"], a["bias"], how)
    tracked = "an instance norm with running statistics; track_running_stats=False can be"
    require(not reader.trains, tracked)
    statistics = a["running_mean"], a["running_var"]
    return _evaluated(reader, node, x, _BatchNorm(*statistics, a["weight"], a["bias"], a["eps"]))


def _grouped(
    reader: ModelReader, node: Any, x: ir.Tensor, weight: Any, bias: Any, how: Groups
) -> ir.Tensor:
    """Add a group norm; weight and bias, per channel, may be None."""
    channels = x.shape[-1]
    fits = how.groups >= 1 and channels % how.groups == 0
    require(fits, f"a norm over {how.groups} groups of {channels} channels")
    _require_eps(how)
    operands = [
        x,
        _or(reader, node, "weight", weight, np.ones(channels)),
        _or(reader, node, "bias", bias, np.zeros(channels)),
    ]
    return reader.op("group_norm", node, operands, x.shape, attributes=how)


def _read_instance_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    """Read a norm per channel of the file, which may be a group of those of the model."""
    groups = (node.shape or (1, 0))[1]
    return _of_groups(reader, node, groups)


def _read_group_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    groups = int(node.attribute("num_groups", 0))
    if node.opset < _PER_CHANNEL:
        return _of_groups(reader, node, groups)
    x = activation(node.operand(0))
    weight, bias = (vector(node, index, x.shape[-1]) for index in (1, 2))
    return _grouped(reader, node, x, weight, bias, Groups(_epsilon(node), groups))


_PER_CHANNEL = 21
"""The first opset in which a GroupNormalization has a scale per channel, not one per group."""


def _of_groups(reader: ModelReader, node: OnnxNode, groups: int) -> ir.Tensor:
    """Add a group norm whose weight and bias are per group."""
    x = activation(node.operand(0))
    channels = x.shape[-1]
    fits = groups >= 1 and channels % groups == 0
    require(fits, f"a norm over {groups} groups of {channels} channels")
    of_group = (vector(node, index, groups) for index in (1, 2))
    weight, bias = (
        None if each is None else np.repeat(each, channels // groups) for each in of_group
    )
    return _grouped(reader, node, x, weight, bias, Groups(_epsilon(node), groups))


def read_spelt(reader: ModelReader, node: Any, x: ir.Tensor, norm: SpeltNorm) -> ir.Tensor:
    """Add a norm that a model spells out, at its last node; all it reads has as many dimensions."""
    rank, how = rank_of(reader, node), OfPlace(norm.eps, norm.centred)
    dims = sorted(dim % rank for dim in norm.dims)
    if dims == [rank - 1]:
        return _over_last(reader, node, x, None, None, how)
    if dims == [1]:
        return _over_channels(reader, node, x, None, None, how)
    fits = dims == [*range(1, rank)] and norm.centred and not reader.trains
    require(fits, f"a norm over dimensions {list(norm.dims)}; the last, or channels, can be")
    return _grouped(reader, node, x, None, None, Groups(norm.eps, 1))


def _read_layer_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    """Read a norm over all axes from one on."""
    x, rank = activation(node.operand(0)), rank_of(reader, node)
    first = int(node.attribute("axis", -1)) % rank
    whole = model_shape(x.shape, rank)
    require(first > 0, "a norm over dimension 0, which holds the examples")
    over = whole[first - 1 :]
    weight, bias = (_of_axes(node, index, over) for index in (1, 2))
    if first == rank - 1:
        return _over_last(reader, node, x, weight, bias, OfPlace(_epsilon(node)))
    _require_whole(over, whole)
    return _whole_example(reader, node, x, weight, bias, _epsilon(node))


def _of_axes(node: OnnxNode, index: int, over: Sequence[int]) -> ir.Array | None:
    """Return a parameter of the shape of what is normalised; None if it is left out."""
    value = node.operand(index)
    if value is None:
        return None
    data = constant(value)
    wide = np.broadcast_shapes(data.shape, tuple(over)) if data.ndim <= len(over) else None
    require(wide == tuple(over), f"parameters of shape {data.shape} for a norm over {list(over)}")
    return np.broadcast_to(data, tuple(over))


def _read_rms_onnx(reader: ModelReader, node: OnnxNode) -> ir.Tensor:
    x, rank = activation(node.operand(0)), rank_of(reader, node)
    first = int(node.attribute("axis", -1)) % rank
    require(first == rank - 1 > 0, f"an RMS norm from axis {first} on; the last axis can be")
    weight = _of_axes(node, 1, model_shape(x.shape, rank)[-1:])
    return _over_last(reader, node, x, weight, None, OfPlace(_epsilon(node), centred=False))


def _epsilon(node: OnnxNode) -> float:
    return float(node.attribute("epsilon", 1e-5))


_LAYER_NORMS: Mapping[bool, Aten] = {
    each: partial(_read_layer_norm, each) for each in (False, True)
}
_LAYER_NORM = _LAYER_NORMS[False]


def _spec(kind: ir.Kind, layer: str, absolute: bool, over_batch: bool) -> Spec:
    constants = 4 if over_batch else 2
    read = partial(_read_batch_norm, absolute) if over_batch else _LAYER_NORMS[absolute]
    aten: dict[str, Aten] = {f"{'fedkit' if absolute else 'aten'}.{kind}.default": read}
    onnx: Mapping[str, Onnx] = {}
    if kind == "batch_norm":
        aten["fedkit.rep_batch_norm.default"] = _read_rep_batch_norm
        onnx = {"BatchNormalization": _read_onnx}
    return Spec(
        kind,
        layer,
        partial(_batch if over_batch else _layer, absolute),
        partial(_example, kind, constants),
        constants=constants,
        operands=_batch_operands if over_batch else _layer_operands,
        attributes=ir.Epsilon,
        aten=aten,
        onnx=onnx,
        only_trains=True,
    )


SPECS = (
    _spec("batch_norm", "batch norm", absolute=False, over_batch=True),
    _spec("l1_batch_norm", "L1 batch norm", absolute=True, over_batch=True),
    _spec("layer_norm", "layer norm", absolute=False, over_batch=False),
    _spec("l1_layer_norm", "L1 layer norm", absolute=True, over_batch=False),
    Spec(
        "group_norm",
        "group norm",
        _of_blocks,
        _group_example,
        constants=2,
        operands=_group_operands,
        attributes=Groups,
        rules=_group_rules,
        fuses_activation=True,
        scale="free",
        wide_constants=True,
        aten={
            "aten.group_norm.default": _read_group_norm,
            "aten.instance_norm.default": _read_instance_norm,
        },
        onnx={
            "GroupNormalization": _read_group_onnx,
            "InstanceNormalization": _read_instance_onnx,
        },
    ),
    Spec(
        "channel_norm",
        "layer norm",
        _of_blocks,
        _place_example,
        constants=2,
        operands=_group_operands,
        attributes=OfPlace,
        rules=_eps_rules,
        fuses_activation=True,
        scale="free",
        wide_constants=True,
        aten={"aten.layer_norm.default": _LAYER_NORM, "aten.rms_norm.default": _read_rms_norm},
        onnx={"LayerNormalization": _read_layer_onnx, "RMSNormalization": _read_rms_onnx},
    ),
)
