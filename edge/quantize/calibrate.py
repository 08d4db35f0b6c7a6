"""What quantisation learns from examples: ranges, and the float and the int8 model side by side.

A ReLU that never fires on the examples shows no range. Its layer gets the one that its inputs can
reach, and what lies behind it the one seen when it fires (`_awake`): inputs unlike the examples,
which such a layer often is there to tell, are represented too. What varies on the examples gives up
at most one bit for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge.quantize.score_masks import masked
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.integers import activation
from fedkit.graph.interpret import FloatArray, compute, evaluate
from fedkit.graph.ops.registry import CHANNEL_AXIS, WEIGHTED, spec_of

_BATCH = 32
_MOST_VALUES = 2**25  # of an activation over all examples that run side by side: 128 MiB
_FEWEST_EXAMPLES = 8
_DEVIATIONS = 4  # of a sum of independent inputs: what few sums exceed

EMPTY = 1e-20
"""A span below this counts as zero: its scale would come near the denormals."""

CONSTANT = 1e-6
"""Of the largest value: varying by less is what float32 makes of a constant."""

Joined = Mapping[str, Set[str]]
"""Activation -> all that concats join it with, itself too, also through pools."""


@dataclass
class Range:
    """The smallest and the largest value seen."""

    low: float = 0.0  # zero is always representable, or padding would not be
    high: float = 0.0

    @property
    def span(self) -> float:
        """How far apart the two are."""
        return self.high - self.low

    def include(self, low: float, high: float) -> None:
        """Widen the range to hold both."""
        self.low, self.high = min(self.low, low), max(self.high, high)


def joined(graph: ir.Graph) -> Joined:
    """Return what concats join, or is tied; activations of which neither is so are left out."""
    groups = {name: {name} for name in (*graph.inputs, *(op.output for op in graph.ops))}
    ties = [[name for name in tie if name in groups] for tie in graph.tied]
    for tie in ties:
        one = set().union(*(groups[name] for name in tie))
        groups |= dict.fromkeys(one, one)
    for op in graph.ops:
        if spec_of(op).scale == "kept":
            one = set().union(*(groups[name] for name in (*op.inputs, op.output)))
            groups |= dict.fromkeys(one, one)
    concats = {op.output for op in graph.ops if spec_of(op).variadic}.union(*ties)
    return {name: group for name, group in groups.items() if group & concats}


def symmetric(graph: ir.Graph) -> frozenset[str]:
    """Return the activations whose zero point must be 0, for what reads them or copies of them."""
    groups, found = joined(graph), set[str]()
    for op in reversed(graph.ops):
        found.update(op.inputs[number] for number in spec_of(op).symmetric)
        if spec_of(op).scale == "kept" and op.output in found:
            found.update(op.inputs)
    return frozenset(found.union(*(groups.get(name, ()) for name in found)))


def ranges(graph: ir.Graph, examples: FloatArray, percentile: float) -> dict[str, Range]:
    """Return the range of every activation; all that a concat joins has one.

    Args:
        graph: Float.
        examples: float32 [n, ...] in the graph's layout, n >= 1.
        percentile: Share of each batch's values, in percent, that a range must hold.

    Raises:
        ExportError: There are none, or they or what follows from them is not finite; or there is
            no such percentile.
    """
    _check(examples, percentile)
    seen = _Seen(graph, percentile)
    with np.errstate(over="ignore", invalid="ignore"):  # `_Seen` names what is not finite
        for start in range(0, len(examples), _BATCH):
            evaluate(graph, examples[start : start + _BATCH], seen.add)
    for op in graph.ops:
        if spec_of(op).looks_up:  # rows that no example chose, too
            table = graph.constant(op.inputs[1])
            seen.ranges[op.output].include(float(table.min()), float(table.max()))
    seen.ranges |= {op.output: Range(*bounds) for op in graph.ops if (bounds := spec_of(op).bounds)}
    groups = joined(graph)
    found = _of_groups(seen.ranges, groups)
    if silent := [
        op for op in graph.ops if activation(op) != "none" and seen.ranges[op.output].span < EMPTY
    ]:
        awake = _of_groups(_awake(graph, examples[:_BATCH], seen.ranges, silent), groups)
        constant = {n for n in found if all(map(seen.is_constant, groups.get(n, {n})))}
        return {n: _widened(found[n], awake[n], n in constant) for n in found}
    return found


class _Seen:
    """What the examples show of each activation.

    Attributes:
        ranges: Activation -> its range.
    """

    def __init__(self, graph: ir.Graph, percentile: float) -> None:
        self.ranges: dict[str, Range] = {}
        self._graph, self._percentile = graph, percentile
        self._masked = masked(graph)
        self._channels: dict[str, tuple[FloatArray, FloatArray]] = {}

    def add(self, name: str, value: FloatArray) -> None:
        """Look at one batch of an activation."""
        if name in self._masked:
            value = np.where(self._masked[name], value, np.float32(0))
        low, high = _extremes(value, self._percentile)
        if not np.isfinite([low, high]).all():
            op = self._graph.producer(name)
            layer = f"layer {op.source!r}: " if op else ""
            raise ExportError(
                f"{layer}tensor {name!r} overflows float32 on the calibration set; make the "
                f"weights or the inputs smaller"
            )
        self.ranges.setdefault(name, Range()).include(low, high)
        rows = value.reshape(-1, value.shape[-1])
        lows, highs = self._channels.get(name, (rows[0], rows[0]))
        self._channels[name] = np.minimum(lows, rows.min(0)), np.maximum(highs, rows.max(0))

    def is_constant(self, name: str) -> bool:
        """Whether every channel of an activation is one value, whatever the example."""
        lows, highs = self._channels[name]
        return bool((highs - lows).max() <= CONSTANT * max(-lows.min(), highs.max()))


def _of_groups(found: Mapping[str, Range], groups: Joined) -> dict[str, Range]:
    """Give all that a concat joins the range of all of it."""
    result = {name: replace(each) for name, each in found.items()}
    for name, group in groups.items():
        for other in group:
            result[name].include(found[other].low, found[other].high)
    return result


def _awake(
    graph: ir.Graph, examples: FloatArray, seen: Mapping[str, Range], silent: list[ir.Op]
) -> dict[str, Range]:
    """Return the ranges if channels of silent ReLUs, drawn at random, fire as far as they can."""
    rng = np.random.default_rng(0)
    values = {graph.inputs[0]: examples}
    found = {name: replace(each) for name, each in seen.items()}
    kept = masked(graph)
    for op in graph.ops:
        operands = [values[n] if n in values else graph.constant(n) for n in op.inputs]
        value = compute(op, graph, operands)
        if any(op is each for each in silent):
            reach = _reach(graph, op, [found[name] for name in op.inputs if name in found])
            fires = rng.integers(0, 2, (len(value), *[1] * (value.ndim - 2), value.shape[-1]))
            value = np.maximum(value, fires * reach, dtype=np.float32)
            found[op.output].include(0.0, float(reach.max()))
        values[op.output] = value
        if op.output in kept:
            value = np.where(kept[op.output], value, np.float32(0))
        found[op.output].include(float(value.min()), float(value.max()))
    return found


def _reach(graph: ir.Graph, op: ir.Op, inputs: list[Range]) -> NDArray[np.float64]:
    """Return what a ReLU gives at most, per channel or for all, with inputs within their ranges.

    A sum of many inputs hardly comes near its bound; then it is where independent inputs, evenly
    spread over their range, would bring few sums.
    """
    if op.kind in WEIGHTED:
        (x,) = inputs
        weight, bias = (graph.constant(name).astype(np.float64) for name in op.inputs[1:])
        rows = np.moveaxis(weight, CHANNEL_AXIS[op.kind], 0).reshape(len(bias), -1)
        bound = np.maximum(rows * x.low, rows * x.high).sum(axis=1)
        spread = x.span * np.sqrt(np.square(rows).sum(axis=1) / 12)
        usual = (x.low + x.high) / 2 * rows.sum(axis=1) + _DEVIATIONS * spread
        reach = np.minimum(bound, usual) + bias
    else:
        reach = np.array([sum(each.high for each in inputs)])
    return np.asarray(
        np.clip(reach, 0, 6 if activation(op) == "relu6" else np.finfo(np.float32).max)
    )


def _widened(seen: Range, awake: Range, is_constant: bool) -> Range:
    """Return a range that holds more of what there is if all fires.

    Args:
        seen: On the examples.
        awake: If all fires; holds `seen`.
        is_constant: Nothing that varies is in `seen`, so that there is no precision to keep.
    """
    more = awake.span - seen.span
    share = 1.0 if is_constant or more <= seen.span else seen.span / more
    low = seen.low + share * (awake.low - seen.low)
    return Range(low, seen.high + share * (awake.high - seen.high))


def _check(examples: FloatArray, percentile: float) -> None:
    if len(examples) == 0:
        raise ExportError("the calibration set is empty; give at least one example, better 100")
    if not np.isfinite(examples).all():
        bad = int((~np.isfinite(examples)).sum())
        raise ExportError(f"the calibration set holds {bad} NaN or infinite value(s); remove them")
    if not 50 < percentile <= 100:
        raise ExportError(f"percentile is {percentile}; it must be above 50 and at most 100")


def _extremes(value: FloatArray, percentile: float) -> tuple[float, float]:
    if percentile == 100:
        return float(value.min()), float(value.max())
    low, high = np.percentile(value, [100 - percentile, percentile])
    return float(low), float(high)


class SideBySide:
    """A float model and the int8 model that is being made of it, run op by op on the same examples.

    The int8 model is run on floats that are rounded as its integers are, which is fast, and equal
    to them but for ties. Of many large activations the first examples are enough; only so many are
    taken.

    Attributes:
        real: Activation -> float32 [n, ...] in the float model, while an op is yet to read it.
        rounded: The same in the int8 model.
    """

    def __init__(self, graph: ir.Graph, examples: FloatArray) -> None:
        self._graph = graph
        self._last_reader = {name: op for op in graph.ops for name in op.inputs}
        largest = max(int(np.prod(graph.tensors[op.output].shape)) for op in graph.ops)
        self._examples = examples[: max(_FEWEST_EXAMPLES, _MOST_VALUES // largest)]
        self.real: dict[str, FloatArray] = {}
        self.rounded: dict[str, FloatArray] = {}

    def enter(self, tensor: ir.Tensor) -> None:
        """Begin with a graph input, quantised."""
        self.real[tensor.name] = self._examples
        self.rounded[tensor.name] = _rounded(self._examples, tensor)

    def run_real(self, op: ir.Op) -> None:
        """Run an op of the float model."""
        operands = [
            self.real[name] if name in self.real else self._graph.constant(name)
            for name in op.inputs
        ]
        self.real[op.output] = compute(op, self._graph, operands)

    def run_rounded(self, op: ir.Op, tensors: Mapping[str, ir.Tensor]) -> None:
        """Run what became of that op, and forget what no op will read.

        Args:
            op: Of the int8 model, with the activations of the float one.
            tensors: Of the int8 model, as far as it is made.
        """
        operands = [
            self.rounded[name] if name in self.rounded else _dequantized(tensors[name])
            for name in op.inputs
        ]
        output = tensors[op.output]
        self.rounded[op.output] = _rounded(compute(op, self._graph, operands), output)
        for name in op.inputs:
            if name in self.rounded and self._last_reader[name].output == op.output:
                del self.real[name], self.rounded[name]


def _rounded(value: FloatArray, tensor: ir.Tensor) -> FloatArray:
    if tensor.dtype == "int32":
        return value  # tokens
    scale, zero_point = np.float32(tensor.scale), tensor.zero_point
    codes = np.clip(np.rint(value / scale), -128 - zero_point, 127 - zero_point)
    return np.asarray(codes * scale, np.float32)


def _dequantized(constant: ir.Tensor) -> FloatArray:
    assert constant.data is not None and constant.quantization is not None
    scale = np.asarray(constant.quantization.scale)
    zero = np.asarray(constant.quantization.zero_point)
    steps, zeros = (
        ir.along(constant.quantization.axis or 0, each, constant.data.ndim)
        for each in (scale, zero)
    )
    return np.asarray((constant.data - zeros) * steps, np.float32)
