"""How far an int8 graph is from the float graph that it was made from, layer by layer.

That an artifact gives the integers of its graph says nothing of whether these are the model: a
wrong scale is wrong in all of them. So every quantisation is compared with the floats, on the
examples that set its ranges, and on the test set where there is one.

The measure is noise over signal: the root mean square of what the integers are off, of that by
which the float values differ from their mean. What all values share tells nothing and does not
count, so that a large offset hides no error. Where all are one value it is that.

What counts is the output: layers that hardly matter to it may be far off. Noise of 0.4 of its
signal (8 dB) leaves hardly more than a bit of it, and is not a usable export; 0.25 (12 dB) is
more than any model of the zoo has at 8 bits, see docs/decisions/export.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.define.interpret_int8 import Int8Array, evaluate_int8
from edge.quantize.score_masks import masked
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.interpret import FloatArray, evaluate, evaluate_all

WARNED = 0.25
"""Noise over signal of an output beyond which a warning is due."""

REFUSED = 0.4
"""Noise over signal of an output beyond which an export is refused."""

_MOST_EXAMPLES = 256
_FEWEST_EXAMPLES = 8
_MOST_VALUES = 2**27  # of all activations of all examples: some seconds
_AT_ONCE = 2**24  # of these, which are held
_LISTED = 3  # layers in a message
_CONSTANT = 1e-4  # of the values: a signal below this is what float32 rounds


class ExportWarning(UserWarning):
    """An artifact that computes something rather far from its float model."""


@dataclass(frozen=True)
class Truth:
    """How an int8 graph compares with its float graph.

    Attributes:
        examples: On how many.
        output: Noise over signal of the model's output; of several, of the one with the most.
        same_class: Share of examples whose largest output is the same one; of maps and series, of
            the places of all; of several outputs the mean.
        layers: Activation -> its noise over signal, in the order of the graph.
    """

    examples: int
    output: float
    same_class: float
    layers: Mapping[str, float]


@dataclass
class _Sums:
    """What is kept of an activation over all batches."""

    count: int = 0
    gaps: float = 0.0
    squares: float = 0.0
    total: float = 0.0

    def add(self, actual: NDArray[np.float64], real: NDArray[np.float64]) -> None:
        self.count += real.size
        self.gaps += float(np.square(actual - real).sum())
        self.squares += float(np.square(real).sum())
        self.total += float(real.sum())

    @property
    def noise(self) -> float:
        """Noise over signal."""
        signal = self.squares - self.total**2 / self.count
        if signal <= _CONSTANT**2 * self.squares:
            signal = self.squares
        if signal == 0:
            return float(self.gaps > 0)
        return math.sqrt(self.gaps / signal)


def compare(graph: ir.Graph, floats: ir.Graph, inputs: ir.Inputs) -> Truth:
    """Compare an int8 graph with its float graph.

    Args:
        graph: Int8; run under our own rounding.
        floats: What it was made from; activations of other shapes, which `edge.passes.slim` leaves,
            are left out.
        inputs: float32 [n, ...], or tokens, in the graph's layout, n >= 1; the first 256 are taken,
            or fewer of a model with many activations.
    """
    sums: dict[str, _Sums] = {}
    same = 0.0
    each = sum(math.prod(tensor.shape) for tensor in floats.tensors.values() if tensor.data is None)
    inputs = np.asarray(inputs, np.float32)
    inputs = inputs[: min(_MOST_EXAMPLES, max(_FEWEST_EXAMPLES, _MOST_VALUES // each))]
    at_once = max(1, _AT_ONCE // each)
    for start in range(0, len(inputs), at_once):
        for name, actual, real in _pairs(graph, floats, inputs[start : start + at_once]):
            sums.setdefault(name, _Sums()).add(actual, real)
            if name in graph.outputs:
                same += same_class(actual, real) / len(graph.outputs)
    noise = {name: sum_.noise for name, sum_ in sums.items()}
    worst = max(noise[name] for name in graph.outputs)
    return Truth(len(inputs), worst, same / len(inputs), noise)


def gap(floats: ir.Graph, before: ir.Graph, inputs: FloatArray) -> float:
    """Return noise over signal of a float graph's output against another's; of several the most.

    Args:
        floats: The graph.
        before: What it should give.
        inputs: As for `compare`.
    """
    each = sum(math.prod(tensor.shape) for tensor in before.tensors.values() if tensor.data is None)
    inputs = inputs[: min(_MOST_EXAMPLES, max(_FEWEST_EXAMPLES, _MOST_VALUES // each))]
    given = {floats.inputs[0]: inputs}
    worst = 0.0
    pairs = zip(evaluate_all(floats, given), evaluate_all(before, given), strict=True)
    for actual, real in pairs:
        sums = _Sums()
        sums.add(actual.astype(np.float64), real.astype(np.float64))
        worst = max(worst, sums.noise)
    return worst


def judge_rewrites(noise: float, names: Sequence[str], accept_error: bool) -> None:
    """Warn of rewrites that change an output much, and refuse those that change it too much.

    Args:
        noise: As `gap` gives it.
        names: Of the rewrites.
        accept_error: Only warn.

    Raises:
        ExportError: The noise is more than `REFUSED` of the signal.
    """
    if noise <= WARNED:
        return
    text = (
        f"{', '.join(names)} changes the float model's output by {noise:.0%} of what it differs by "
        f"(warned above {WARNED:.0%}, refused above {REFUSED:.0%}); fine-tune the model for it, or "
        "leave it out"
    )
    if noise > REFUSED and not accept_error:
        raise ExportError(f"{text}; accept_error (--accept-error) exports it all the same")
    warnings.warn(text, ExportWarning, stacklevel=4)


def of(origin: ir.Origin, outputs: Sequence[str]) -> Truth:
    """Return what was found when a graph of such outputs was made, on its calibration set."""
    noise = dict(origin.noise)
    worst = max(noise[name] for name in outputs)
    return Truth(origin.examples, worst, origin.same_class, noise)


def _pairs(
    graph: ir.Graph, floats: ir.Graph, batch: FloatArray
) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Yield each activation as the int8 graph has it, dequantised, and as the float graph has."""
    real: dict[str, FloatArray] = {}
    evaluate(floats, batch, real.__setitem__)
    kept = masked(floats)
    found: dict[str, Int8Array] = {}
    evaluate_int8(graph, quantized(graph, batch), visit=found.__setitem__)
    for name, integers in found.items():
        if name in real and real[name].shape == integers.shape:
            tensor = graph.tensors[name]
            actual = tensor.scale * (integers.astype(np.float64) - tensor.zero_point)
            wanted = real[name].astype(np.float64)
            if name in kept:  # what a mask leaves out is far below, and no error
                actual, wanted = (np.where(kept[name], each, 0.0) for each in (actual, wanted))
            yield name, actual, wanted


def quantized(graph: ir.Graph, inputs: FloatArray) -> NDArray[Any]:
    """Return float inputs as the integers that an int8 graph reads; of tokens int32."""
    first = graph.tensors[graph.inputs[0]]
    if first.dtype == "int32":
        return np.asarray(inputs, np.int32)
    codes = np.rint(inputs / np.float32(first.scale)) + first.zero_point
    return np.asarray(np.clip(codes, -128, 127), np.int8)


def same_class(actual: NDArray[np.generic], real: NDArray[np.generic]) -> float:
    """Return how many examples keep their class; of maps, the share of places that do counts.

    Args:
        actual: Outputs [n, classes] or [n, height, width, classes].
        real: As many others.
    """
    same = actual.argmax(axis=-1) == real.argmax(axis=-1)
    return float(same.reshape(len(same), -1).mean(axis=1).sum()) if same.size else 0.0


def judge(found: Truth, graph: ir.Graph, on: str, accept_error: bool = False) -> None:
    """Warn of an output with much noise, and refuse one with too much.

    Args:
        found: What `compare` found.
        graph: The int8 graph, which says where layers come from.
        on: What the examples are, for the message.
        accept_error: Only warn.

    Raises:
        ExportError: The noise is more than `REFUSED` of the signal.
    """
    if found.output <= WARNED:
        return
    text = (
        f"the int8 model is not close to the float model: on the {found.examples} examples of "
        f"{on} its output is off by {found.output:.0%} of what it differs by "
        f"(warned above {WARNED:.0%}, refused above {REFUSED:.0%}), and {found.same_class:.1%} of "
        f"them keep their class; the error grows most at {_worst(found, graph)}. Calibrate with "
        f"examples like those it will see, normalise inputs and wide layers, or use more bits"
    )
    if found.output > REFUSED and not accept_error:
        raise ExportError(f"{text}; accept_error (--accept-error) exports it all the same")
    warnings.warn(text, ExportWarning, stacklevel=3)


def warn_of_few(calibration: ir.Inputs) -> None:
    """Warn of a calibration set that shows next to nothing, of ranges or of errors.

    Args:
        calibration: float32 [n, ...], as torch takes it.

    Warns:
        ExportWarning: It holds one example, over and over or not, or images without content.
    """
    if len(calibration) == 0:
        return  # refused where the ranges are looked for
    values = calibration.reshape(*calibration.shape[:2], -1)
    if (calibration == calibration[:1]).all():
        found = "one example" + (f", {len(calibration)} times" if len(calibration) > 1 else "")
    elif values.shape[2] > 1 and (values == values[..., :1]).all():
        found = "images of one colour each"
    else:
        return
    warnings.warn(
        f"the calibration set holds {found}; it sets the range of every activation, and what is "
        "beyond is cut off: give 100 to 500 examples of what the model will see",
        ExportWarning,
        stacklevel=3,
    )


def _worst(found: Truth, graph: ir.Graph) -> str:
    """Name the layers whose noise is furthest above that of what they read."""
    grown = {}
    for op in graph.ops:
        if op.output in found.layers:
            before = max((found.layers.get(name, 0.0) for name in op.inputs), default=0.0)
            grown[op.output] = found.layers[op.output] - before
    names = sorted(grown, key=lambda name: -grown[name])[:_LISTED]
    sources = {op.output: op.source for op in graph.ops}
    return ", ".join(f"{sources[name]!r} ({found.layers[name]:.0%})" for name in names)
