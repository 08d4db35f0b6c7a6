"""What quantisation learns from examples: ranges, and the float and the int8 model side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge import ir
from edge.interpret import FloatArray, compute, evaluate
from fedkit.errors import ExportError

_BATCH = 32
_MOST_VALUES = 2**25  # of an activation over all examples that run side by side: 128 MiB
_FEWEST_EXAMPLES = 8


@dataclass
class Range:
    """The smallest and the largest value seen."""

    low: float = 0.0  # zero is always representable, or padding would not be
    high: float = 0.0

    def include(self, low: float, high: float) -> None:
        """Widen the range to hold both."""
        self.low, self.high = min(self.low, low), max(self.high, high)


def ranges(graph: ir.Graph, examples: FloatArray, percentile: float) -> dict[str, Range]:
    """Return the range of every activation.

    Args:
        graph: Float.
        examples: float32 [n, ...] in the graph's layout, n >= 1.
        percentile: Share of each batch's values, in percent, that a range must hold.

    Raises:
        ExportError: There are none, or they or what follows from them is not finite; or there is
            no such percentile.
    """
    _check(examples, percentile)
    found: dict[str, Range] = {}

    def visit(name: str, value: FloatArray) -> None:
        low, high = _extremes(value, percentile)
        if not np.isfinite([low, high]).all():
            raise ExportError(f"tensor {name!r} overflows float32 on the calibration set")
        found.setdefault(name, Range()).include(low, high)

    for start in range(0, len(examples), _BATCH):
        evaluate(graph, examples[start : start + _BATCH], visit)
    return found


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
    scale, zero_point = np.float32(tensor.scale), tensor.zero_point
    codes = np.clip(np.rint(value / scale), -128 - zero_point, 127 - zero_point)
    return np.asarray(codes * scale, np.float32)


def _dequantized(constant: ir.Tensor) -> FloatArray:
    assert constant.data is not None and constant.quantization is not None
    scale = np.asarray(constant.quantization.scale)
    steps = ir.along(constant.quantization.axis or 0, scale, constant.data.ndim)
    return np.asarray(constant.data * steps, np.float32)
