"""From the graph of a model, as it trains, to the tensors and ops of a plan.

A plan attaches norms and activations to what is stored, and normalises at every read; so a value
that is read raw elsewhere is copied first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from fedkit.engine.ops.add import Add
from fedkit.engine.ops.copy import Copy
from fedkit.engine.ops.pool import Pool
from fedkit.engine.ops.registry import FAMILIES
from fedkit.engine.ops.reorder import Reorder
from fedkit.engine.plan.conv import Conv
from fedkit.engine.plan.layer_norm import GroupNorm, LayerNorm
from fedkit.engine.plan.pair import PairOp, paired
from fedkit.engine.plan.structure import Activation, LayerKind, Norm, Pair, Shape, StoredTensor
from fedkit.engine.plan.structure import PlanOp as Op
from fedkit.engine.plan.windows import window_plane
from fedkit.graph import ir
from fedkit.graph.ops.norms import Groups


class UnsupportedOp(Exception):
    """One op that a plan cannot express, and why."""


class PlanMaker:
    """What has been planned so far.

    Attributes:
        tensors: Of the plan.
        ops: Of the plan.
        reasons: Why ops cannot be in a plan, a line each.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.tensors: list[StoredTensor] = []
        self.ops: list[Op] = []
        self.reasons: list[str] = []
        self._values: dict[str, int] = {}  # activation -> tensor of the plan
        self._views: dict[str, str] = {}  # activation -> what it shows in another shape
        self._padded: dict[str, ir.Op] = {}  # activation -> the padding that makes it
        (name,) = graph.inputs
        self._values[name] = self.new(planned(graph.tensors[name].shape))
        for op in graph.ops:
            self._plan(op)

    def _plan(self, op: ir.Op) -> None:
        """Plan one op; where it cannot be, go on as if it had been."""
        try:
            self._values[op.output] = RULES.get(op.kind, _refuse)(self, op)
        except UnsupportedOp as error:
            self.reasons.append(f"module {op.source or '(model)'!r}: {op.kind}: {error}")
            self._values[op.output] = self.new(planned(self.graph.tensors[op.output].shape))

    def output(self) -> int:
        """Return the tensor of the logits, which has no norm."""
        (name,) = self.graph.outputs
        tensor = self._values[name]
        return self.copied(tensor) if self.tensors[tensor].norm is not None else tensor

    def new(self, shape: Shape) -> int:
        """Add a plain tensor."""
        self.tensors.append(StoredTensor(shape))
        return len(self.tensors) - 1

    def copied(self, source: int) -> int:
        """Add a plain tensor that holds what a read of `source` gives."""
        target = self.new(self.tensors[source].shape)
        self.ops.append(Copy(source, target))
        return target

    def value(self, op: ir.Op, number: int = 0) -> int:
        """Return the tensor of an input.

        Raises:
            UnsupportedOp: It is a constant.
        """
        name = op.inputs[number]
        _require(name in self._values, "combines an activation and a constant")
        return self._values[name]

    def target(self, op: ir.Op) -> int:
        """Add the tensor that an op writes."""
        return self.new(planned(self.graph.tensors[op.output].shape))

    def own(self, name: str, is_free: bool) -> int:
        """Return a tensor to attach a norm or activation to: that of a value, or a copy of it."""
        tensor = self._values[name]
        if tensor != 0 and is_free and self._is_read_once(name):
            return tensor
        return self.copied(tensor)

    def _is_read_once(self, name: str) -> bool:
        """Whether one alone reads a value, by any view of it."""
        readers = sum(op.inputs.count(name) > 0 for op in self.graph.ops)
        readers += name in self.graph.outputs
        return readers == 1 and (name not in self._views or self._is_read_once(self._views[name]))

    def view(self, op: ir.Op) -> int:
        """Return the tensor of what an op shows in another shape."""
        self._views[op.output] = op.inputs[0]
        return self.value(op)

    def parameter(self, op: ir.Op, number: int, instead: float) -> str | None:
        """Return the name of a parameter; None where there is none, and all values are `instead`.

        Raises:
            UnsupportedOp: It is computed, or no parameter.
        """
        tensor = self.graph.tensors[op.inputs[number]]
        if tensor.parameter:
            return tensor.parameter
        if tensor.data is not None and (tensor.data == np.float32(instead)).all():
            return None
        raise UnsupportedOp("its weights are not parameters of the model, but computed from them")

    def weight(self, op: ir.Op) -> str:
        """Return the name of the weights of a convolution or linear layer."""
        name = self.parameter(op, 1, math.nan)
        assert name is not None
        return name

    def is_averaged(self, op: ir.Op) -> bool:
        """Whether an average alone reads a padding, whose windows count it."""
        readers = [other for other in self.graph.ops if op.output in other.inputs]
        is_averaged = len(readers) == 1 and readers[0].kind == "avg_pool2d"
        return is_averaged and op.output not in self.graph.outputs

    def skip_padding(self, op: ir.Op) -> int:
        """Leave a padding to the average that reads it."""
        self._padded[op.output] = op
        return self.value(op)

    def padding_of(self, op: ir.Op) -> ir.Op | None:
        """Return the padding that `skip_padding` left to an op."""
        return self._padded.get(op.inputs[0])


def planned(shape: ir.Shape) -> Shape:
    """Return [1, h, w, c] or [1, features] as (channels, height, width)."""
    if len(shape) == 2:
        return shape[1], 1, 1
    _, height, width, channels = shape
    return channels, height, width


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise UnsupportedOp(reason)


def _refuse(maker: PlanMaker, op: ir.Op) -> int:
    raise UnsupportedOp("a plan has no such op")


def _conv(maker: PlanMaker, op: ir.Op) -> int:
    source, window = maker.value(op), op.window or ir.Window()
    channels = maker.tensors[source].shape[0]
    groups = {
        "depthwise_conv2d": channels,
        "grouped_conv2d": channels // maker.graph.tensors[op.inputs[1]].shape[-1],
    }.get(op.kind, 1)
    padding = _padding(maker, op, window, window.padding)
    target = maker.target(op)
    weight, bias = maker.weight(op), maker.parameter(op, 2, 0.0)
    where = (window.kernel, window.stride, padding, window.dilation)
    maker.ops.append(Conv(source, target, weight, bias, *where, groups))
    return target


def _padding(
    maker: PlanMaker, op: ir.Op, window: ir.Window, sides: tuple[int, int, int, int]
) -> Pair:
    """Return the padding of (height, width), which a plan has on both sides alike."""
    padding = sides[0], sides[2]
    source = maker.tensors[maker.value(op)].shape
    out = planned(maker.graph.tensors[op.output].shape)[1:]
    found = window_plane(source, window.kernel, window.stride, padding, window.dilation)
    _require(
        found == out,
        f"padding {sides} at (top, bottom, left, right) is uneven; it must be the same on both "
        "sides",
    )
    return padding


def _batch_norm(maker: PlanMaker, op: ir.Op) -> int:
    before = maker.tensors[maker.value(op)]
    name, _, kind = maker.graph.tensors[op.inputs[1]].parameter.rpartition(".")
    _require(kind == "running_mean", "its statistics are not buffers of a batch norm")
    weight, bias = maker.parameter(op, 3, 1.0), maker.parameter(op, 4, 0.0)
    tensor = maker.own(op.inputs[0], before == StoredTensor(before.shape))
    attached = Norm(
        name, "l1-batch" if op.kind == "l1_batch_norm" else "batch", _eps(op), weight, bias
    )
    maker.tensors[tensor] = replace(maker.tensors[tensor], norm=attached)
    return tensor


def _eps(op: ir.Op) -> float:
    assert isinstance(op.attributes, ir.Epsilon)  # the verifier's rule
    return op.attributes.eps


def _layer_norm(maker: PlanMaker, op: ir.Op) -> int:
    weight, bias = maker.parameter(op, 1, 1.0), maker.parameter(op, 2, 0.0)
    kind: LayerKind = "l1-layer" if op.kind == "l1_layer_norm" else "layer"
    source, target = maker.value(op), maker.target(op)
    maker.ops.append(LayerNorm(source, target, op.source, _eps(op), weight, bias, kind))
    return target


def _group_norm(maker: PlanMaker, op: ir.Op) -> int:
    assert isinstance(op.attributes, Groups)  # the verifier's rule
    weight, bias = maker.parameter(op, 1, 1.0), maker.parameter(op, 2, 0.0)
    source, target, how = maker.value(op), maker.target(op), op.attributes
    maker.ops.append(GroupNorm(source, target, op.source, how.eps, weight, bias, how.groups))
    return target


def _activate(maker: PlanMaker, op: ir.Op) -> int:
    activation: Activation = "relu6" if op.kind == "relu6" else "relu"
    before = maker.tensors[maker.value(op)]
    tensor = maker.own(op.inputs[0], before.activation == "none")
    maker.tensors[tensor] = replace(maker.tensors[tensor], activation=activation)
    return tensor


def _pair(maker: PlanMaker, op: ir.Op) -> int:
    left, right = maker.value(op), maker.value(op, 1)
    shapes = [maker.tensors[side].shape for side in (left, right)]
    _require(
        paired(*shapes) is not None,
        f"combines {shapes[0]} and {shapes[1]}; the shapes must be equal, or one have a single "
        "pixel per channel",
    )
    target = maker.target(op)
    if op.kind != "add":
        maker.ops.append(PairOp(left, right, target, "mul" if op.kind == "mul" else "sub"))
    elif shapes[0] == shapes[1]:
        maker.ops.append(Add(left, right, target))
    else:
        maker.ops.append(PairOp(left, right, target, "add-gate"))
    return target


def _concat(maker: PlanMaker, op: ir.Op) -> int:
    sources = [maker.value(op, number) for number in range(len(op.inputs))]
    target, start = maker.target(op), 0
    for source in sources:
        maker.ops.append(Copy(source, target, start))
        start += maker.tensors[source].shape[0]
    return target


_POOLS: Mapping[ir.Kind, Literal["max", "mean", "sum"]] = {
    "max_pool2d": "max",
    "avg_pool2d": "mean",
    "sum_pool2d": "sum",
}


def _pool(maker: PlanMaker, op: ir.Op) -> int:
    source, window = maker.value(op), op.window or ir.Window()
    sides, padded = window.padding, maker.padding_of(op)
    if op.kind == "avg_pool2d":
        _require(not any(sides), "its windows do not count their padding")
        if padded is not None and padded.window is not None:
            sides = padded.window.padding
    padding = _padding(maker, op, window, sides)
    half = all(2 * each <= kernel for each, kernel in zip(padding, window.kernel, strict=True))
    _require(half, f"padding {padding} is more than half of the kernel {window.kernel}")
    target = maker.target(op)
    operation = _POOLS[op.kind]
    maker.ops.append(Pool(source, target, window.kernel, window.stride, padding, operation))
    return target


def _mean(maker: PlanMaker, op: ir.Op) -> int:
    source = maker.value(op)
    plane = maker.tensors[source].shape[1:]
    target = maker.target(op)
    maker.ops.append(Pool(source, target, plane, plane, (0, 0), "mean"))
    return target


def _reshape(maker: PlanMaker, op: ir.Op) -> int:
    before = maker.tensors[maker.value(op)].shape
    after = planned(maker.graph.tensors[op.output].shape)
    if before == after:
        return maker.view(op)
    source, is_flat = maker.view(op), after == (math.prod(before), 1, 1)
    if is_flat and (op.kind == "flatten_nchw" or _counts_alike(before)):
        target = maker.target(op)
        maker.ops.append(Copy(source, target))
        return target
    if before[0] == after[0] or (_counts_alike(before) and _counts_alike(after)):
        target = maker.target(op)
        maker.ops.append(Reorder(source, target))
        return target
    # The graph counts rows, columns, channels, the plan channels first.
    between = maker.target(op) if is_flat else maker.new((*after[1:], after[0]))
    maker.ops.append(Reorder(source, between, (1, 2, 0)))
    if is_flat:
        return between
    target = maker.target(op)
    maker.ops.append(Reorder(between, target, (2, 0, 1)))
    return target


def _counts_alike(shape: Shape) -> bool:
    """Whether the graph and the plan put the elements of a shape in the same order."""
    channels, height, width = shape
    return 1 in (channels, height * width)


RULES: Mapping[ir.Kind, Callable[[PlanMaker, ir.Op], int]] = {
    **{kind: rule for family in FAMILIES.values() for kind, rule in family.from_graph.items()},
    **dict.fromkeys(("conv2d", "depthwise_conv2d", "grouped_conv2d", "linear"), _conv),
    **dict.fromkeys(("batch_norm", "l1_batch_norm"), _batch_norm),
    **dict.fromkeys(("layer_norm", "l1_layer_norm"), _layer_norm),
    "group_norm": _group_norm,
    **dict.fromkeys(("relu", "relu6"), _activate),
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(("reshape", "flatten_nchw"), _reshape),
    **dict.fromkeys(("add", "mul", "sub"), _pair),
    "concat": _concat,
    "mean": _mean,
}
"""Kind of op in the model graph -> what plans it: adds ops, or says more of a tensor."""
