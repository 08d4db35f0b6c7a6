"""Turn a float graph into an int8 graph by TFLite's quantisation specification.

Activations: int8, one scale and zero point per tensor, from the range seen in calibration.
Weights: int8 in [-127, 127], symmetric, one scale per output channel; with fewer bits within
[-7, 7] or [-31, 31], clipped where the channel's squared error is least.
Biases: int32 with scale = input scale * weight scale; they make up for the mean of what rounding
the weights, and all before them, changes. Fewer bits than 8 are chosen by what the layer computes,
too; see `edge.quantize.fit`.
Scales may be confined to powers of two. Then what sums are multiplied by are powers of two as well,
which is a shift; only a mean over an area that is not a power of two keeps a multiplier.
Concats: all that they join, also through ops that keep their scale, has the range of all together,
so that a concat only copies.

Three bounds keep every model computable, whatever its values are; each moves a scale only where
the change is below what the integers can express anyway:

- an output scale is larger than the scale of the sums of products that are rounded into it, and
  at least 1/128 of that of other inputs: steps finer than those of an accumulator hold nothing; few
  channels whose sums have far coarser steps than the rest are shrunk instead;
- a weight scale is large enough that the bias fits 30 bits; so a pruned channel, all of whose
  weights are zero, still carries its bias with 30 bits;
- a weight scale is at least 2**-30 of the output scale: smaller ones round to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.ops.registry import spec_of as integer_spec
from edge.quantize import fit
from edge.quantize.calibrate import (
    CONSTANT,
    EMPTY,
    Joined,
    Range,
    SideBySide,
    joined,
    ranges,
    symmetric,
)
from edge.quantize.powers import read_by_softmax, surely_rounded
from edge.quantize.score_masks import finite_mask, lowest, masked
from fedkit.core.errors import ExportError
from fedkit.graph import integers, ir
from fedkit.graph.interpret import FloatArray
from fedkit.graph.ops.registry import CHANNEL_AXIS, WEIGHTED, groups_of, spec_of, tokens_of
from fedkit.graph.verify import verify

Scaling = Literal["float", "pow2"]
"""What a scale may be: any float32, or a power of two."""

Codes = tuple[float, int, bool]
"""What the code 1 is worth, the largest code, and whether codes go down to minus that, not to 0."""

_Floats = NDArray[np.float64]
_Grid = Callable[[_Floats], _Floats]
"""Takes scales to such as are allowed: the nearest, or the next larger."""

_LARGEST_MULTIPLIER = 128.0
_ROUNDS = 8  # in which the scales of what concats join converge; each needs one or two
_LARGEST_OF_SUMS = 1 - 2.0**-20  # by which kernels multiply sums of products: below 1
_SMALLEST_MULTIPLIER = 2.0**-30
_BIAS_LIMIT = 2.0**30
_SMALLEST_WHOLE_OFFSET = 32
_HAIR = 2.0**-10
_FALLBACK_SCALE = 1 / 127  # for inputs that are always zero; covers [-1, 1]
_WIDE_BITS = 30
_UNUSED = 2.0**-20  # of its input's scale: that of zeros, so fine that no sum with them loses by it
_TINY = np.finfo(np.float64).tiny  # to divide by where what is divided is 0 too
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class TrainedIntegers:
    """Integers that a model was trained with; its weights are such, times a step per channel.

    Attributes:
        weights: Name of a layer's weight in the torch model -> its integers, int8, of its shape.
        outputs: Name of a layer's weight -> the codes of the layer's output, norm and activation
            included.
    """

    weights: Mapping[str, NDArray[np.int8]] = field(default_factory=dict)
    outputs: Mapping[str, Codes] = field(default_factory=dict)


def quantize(
    graph: ir.Graph,
    calibration: ir.Inputs,
    percentile: float = 100.0,
    weight_bits: int = 8,
    scales: Scaling = "float",
    trained: TrainedIntegers | None = None,
    span: tuple[float, float] | None = None,
) -> ir.Graph:
    """Quantise a float graph to int8.

    Args:
        graph: Float, optimised (no BatchNorm left).
        calibration: float32 [n, h, w, c] or [n, f] in the graph's layout, or whole numbers
            [n, tokens], n >= 1; examples of what the model will see. They set the range of
            every activation.
        percentile: Share of each batch's values, in percent, that the range of an activation
            must hold; 100 takes the smallest and the largest value.
        weight_bits: 8, 6 or 4. Fewer than 8 save space where weights are packed; they are int8 in
            the graph whatever their range.
        scales: "pow2" takes powers of two only, at the price of up to half of a range.
        trained: Integers to keep, up to the sign that a folded norm gives a channel; with scales
            "float" only. Activations that it does not know are calibrated.
        span: The least and the largest value of the input, where more is known of it than the
            calibration set shows; 0 lies between them.

    Returns:
        The int8 graph; input and output are int8 too. It passes `verify`.

    Raises:
        ExportError: NaN or infinity in the weights or the calibration set, an empty calibration
            set, other bits or scales than those, trained integers that are not the graph's, or a
            layer so wide that its 32-bit accumulators could overflow.
    """
    verify(graph)
    calibration = np.asarray(calibration, np.float32)  # of tokens, too
    if weight_bits not in (4, 6, 8):
        raise ExportError(f"weight_bits is {weight_bits}; weights have 8, 6 or 4 bits")
    if scales not in _GRIDS:
        raise ExportError(f"scales is {scales!r}; choose one of {', '.join(_GRIDS)}")
    if trained is not None and scales != "float":
        raise ExportError(
            f"scales is {scales!r}, but trained integers have steps of their own; leave scales at "
            "'float', or give no trained integers"
        )
    seen = ranges(graph, calibration, percentile)
    if span is not None:
        seen |= _known(graph, seen, span)
    most = 2 ** (weight_bits - 1) - 1
    result = _converged(
        _Quantizer(
            graph,
            calibration,
            seen,
            most,
            _GRIDS[scales],
            trained or TrainedIntegers(),
            joined(graph),
            symmetric(graph),
            masked(graph).keys(),
            frozenset().union(*graph.tied),
            read_by_softmax(graph, joined(graph)) if scales == "float" else frozenset(),
        )
    )
    verify(result)
    return result


def _known(
    graph: ir.Graph, seen: Mapping[str, Range], span: tuple[float, float]
) -> dict[str, Range]:
    """Return the range of the input, and of what concats join with it."""
    x, found = graph.inputs[0], Range(*span)
    group = joined(graph).get(x, {x})
    for name in group - {x}:
        found.include(seen[name].low, seen[name].high)
    return dict.fromkeys(group, found)


def _converged(quantizer: _Quantizer) -> ir.Graph:
    """Quantise, again as long as something that concats join raised the scale of all of it."""
    before: dict[str, float] = {}
    for _ in range(_ROUNDS):
        result = quantizer.run()
        if not quantizer.joined or quantizer.least == before:
            return result
        grown = [name for name, least in quantizer.least.items() if least > before.get(name, 0)]
        before = dict(quantizer.least)
    op = quantizer.graph.producer(grown[0])
    raise ExportError(
        f"layer {op.source if op else grown[0]!r} makes much more of values that a concat joins "
        f"with its own, and all of these have one scale; make its weights smaller, or normalise "
        f"what it gives"
    )


@dataclass
class _Quantizer:
    """Walks the float graph in order; each op finds its inputs quantised.

    Attributes:
        ranges: Of each activation in calibration.
        most: The largest code of a weight.
        joined: What concats join, which has one range and scale.
        symmetric: What has the zero point 0.
        masked: Sums of scores and a mask.
        tied: What has one scale with others that are made of other values by the same layer; what
            its integers are must not depend on these.
        powers: What a softmax reads the powers of, see `edge.quantize.powers`.
        least: Activation -> what its scale must be at least, as far as known.
        side_by_side: The model and what is made of it, up to the op at hand, on the examples.
    """

    graph: ir.Graph
    examples: FloatArray
    ranges: dict[str, Range]
    most: int
    grid: _Grid
    trained: TrainedIntegers
    joined: Joined
    symmetric: Set[str]
    masked: Set[str]
    tied: Set[str]
    powers: Set[str]
    least: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, ir.Tensor] = field(default_factory=dict)
    ops: list[ir.Op] = field(default_factory=list)
    side_by_side: SideBySide = field(init=False)

    def run(self) -> ir.Graph:
        self.tensors, self.ops = {}, []
        self.side_by_side = SideBySide(self.graph, self.examples)
        for name in self.graph.inputs:
            self._input(name)
            self.side_by_side.enter(self.tensors[name])
        for op in self.graph.ops:
            self.side_by_side.run_real(op)
            self._op(op)
            self.side_by_side.run_rounded(self.ops[-1], self.tensors)
        return replace(self.graph, tensors=self.tensors, ops=tuple(self.ops))

    def _input(self, name: str) -> None:
        if tokens_of(self.graph):
            shape = self.graph.tensors[name].shape
            self.tensors[name] = ir.Tensor(name, shape, "int32", None, ir.TOKENS)
        else:
            self._activation(name, self._affine(name, 0.0, _FALLBACK_SCALE))

    def _op(self, op: ir.Op) -> None:
        if op.kind in WEIGHTED:
            self._weighted(op)
            return
        if spec_of(op).looks_up:
            self._table(op)
            return
        if op.output in self.masked:
            self._mask(op)
            return
        inputs = [self.tensors[self._operand(op, name)] for name in op.inputs]
        self._activation(op.output, self._output(op, inputs))
        self.ops.append(replace(op, inputs=tuple(x.name for x in inputs)))

    def _operand(self, op: ir.Op, name: str) -> str:
        """Return the name of an operand, which may be a constant, among the integers."""
        data = self.graph.tensors[name].data
        if data is None:
            return name
        if spec_of(op).wide_constants:
            made = ir.unused_name(f"{name}_int32", self.graph.tensors)
            self.tensors[made] = _wide(made, data)
            return made
        made = ir.unused_name(f"{name}_int8", self.graph.tensors)
        seen = Range()
        seen.include(float(data.min()), float(data.max()))
        self.tensors[made] = _narrow(made, data, _affine(seen, 0.0, _FALLBACK_SCALE, self.grid))
        return made

    def _mask(self, op: ir.Op) -> None:
        """Add a mask to scores, see `edge.quantize.score_masks`."""
        (number,) = (n for n, name in enumerate(op.inputs) if name in self.tensors)
        scores, mask = self.tensors[op.inputs[number]], self.graph.constant(op.inputs[1 - number])
        seen = Range(min(lowest(scores, mask), 0.0), self.ranges[op.output].high)
        how = _affine(seen, scores.scale / _LARGEST_MULTIPLIER, _FALLBACK_SCALE, self.grid)
        how = self._surely_rounded(op.output, how)
        name = ir.unused_name(f"{op.output}.mask_int8", self.graph.tensors)
        data = finite_mask(scores, mask, how)
        own = Range()
        own.include(float(data.min()), float(data.max()))
        self.tensors[name] = _narrow(name, data, _affine(own, 0.0, _FALLBACK_SCALE, self.grid))
        self._activation(op.output, how)
        inputs = (scores.name, name) if number == 0 else (name, scores.name)
        self.ops.append(replace(op, inputs=inputs))

    def _table(self, op: ir.Op) -> None:
        """Let an op look up rows of integers, which have its own scale."""
        tokens, table = op.inputs
        name = ir.unused_name(f"{op.output}.table_int8", self.graph.tensors)
        self._activation(op.output, self._affine(op.output, 0.0, _FALLBACK_SCALE))
        how = self.tensors[op.output].quantization
        assert how is not None  # as it was just made
        self.tensors[name] = _narrow(name, self.graph.constant(table), how)
        self.ops.append(replace(op, inputs=(tokens, name)))

    def _output(self, op: ir.Op, inputs: list[ir.Tensor]) -> ir.Quantization | None:
        scale = spec_of(op).scale
        if scale == "kept":
            return inputs[0].quantization
        if isinstance(scale, ir.Quantization):
            if op.output in self.joined:
                raise ExportError(
                    f"layer {op.source!r}: what {op.kind} gives always has the scale "
                    f"{scale.scale[0]}, and a concat joins it with others, which all need one: "
                    f"join what it reads, or put a layer between"
                )
            if op.output in self.symmetric and any(scale.zero_point):
                raise ExportError(
                    f"layer {op.source!r}: what {op.kind} gives always has the zero point "
                    f"{scale.zero_point[0]}, and as the second factor of a product of matrices it "
                    f"needs 0: let it be the first, by (a b)^T = b^T a^T, or put a layer between"
                )
            return scale
        coarsest = max(x.scale for x in inputs)
        least = 0.0 if scale == "free" else coarsest / _LARGEST_MULTIPLIER
        if scale == "product":
            product = inputs[0].scale * inputs[1].scale
            least = product / (integers.LARGEST_OF_PRODUCTS * _LARGEST_OF_SUMS)
        out = self._affine(op.output, least, coarsest * _UNUSED)
        widens = integer_spec(op).takes_whole_offset
        is_held = op.output in self.joined or op.output in self.symmetric
        is_free = widens and self.grid is _float32 and not is_held
        return _with_whole_offset(self.ranges[op.output], inputs[0], out) if is_free else out

    def _affine(self, name: str, least: float, unused: float) -> ir.Quantization:
        """Return scale and zero point of what is rounded.

        Args:
            name: The activation; all that a concat joins have the same.
            least: What the scale is at least.
            unused: What it is at least where nothing but 0 is to be held.
        """
        group = self.joined.get(name, frozenset({name}))
        self.least[name] = max(self.least.get(name, 0.0), least)
        least = max(self.least.get(each, 0.0) for each in group)
        seen = self.ranges[name]
        if name not in self.symmetric:
            return self._surely_rounded(name, _affine(seen, least, unused, self.grid))
        most = max(-seen.low, seen.high)
        even = _affine(Range(-most * 128 / 127, most), least, unused, self.grid)
        return self._surely_rounded(name, replace(even, zero_point=(0,)))

    def _surely_rounded(self, name: str, how: ir.Quantization) -> ir.Quantization:
        if name not in self.powers:
            return how
        return replace(how, scale=(surely_rounded(how.scale[0]),))

    def _activation(self, name: str, quantization: ir.Quantization | None) -> None:
        self.tensors[name] = ir.Tensor(
            name, self.graph.tensors[name].shape, "int8", None, quantization
        )

    def _weighted(self, op: ir.Op) -> None:
        x = self.tensors[op.inputs[0]]
        weight = self.graph.constant(op.inputs[1]).astype(np.float64)
        bias = self.graph.constant(op.inputs[2]).astype(np.float64)
        axis = CHANNEL_AXIS[op.kind]
        rows = np.moveaxis(weight, axis, 0).reshape(len(bias), -1)
        scale, most = self._weight_scale(op, rows)
        carried = self.grid(np.abs(bias) / (x.scale * _BIAS_LIMIT))
        wanted = np.maximum(scale, carried)
        finest = max(self._finest(op, x.scale * wanted), x.scale * float(carried.max()))
        out = self._weighted_output(op, finest)
        coarsest = _float32(np.asarray(out.scale[0] * _LARGEST_OF_SUMS / x.scale))
        # Never more than wanted: where the output's own steps are coarser, nothing is to be shrunk.
        is_coarse = x.scale * wanted > finest
        scale = np.where(is_coarse, np.minimum(coarsest, wanted), wanted)
        made = weight * ir.along(axis, _ratio(scale, wanted), weight.ndim)  # mostly by 1
        scale = self.grid(np.maximum(scale, out.scale[0] * _SMALLEST_MULTIPLIER / x.scale))
        self._activation(op.output, out)
        if _weight_name(op) in self.trained.weights or op.output in self.tied:
            integers = _rounded(made, ir.along(axis, scale, weight.ndim), most)
        else:
            integers, bias = self._fitted(op, weight, made, bias, scale)
        taken = self.graph.tensors
        names = (
            ir.unused_name(f"{op.output}.weight_int8", taken),
            ir.unused_name(f"{op.output}.bias_int32", taken),
        )
        self._constants(op, names, integers, bias, scale)
        self.ops.append(replace(op, inputs=(x.name, *names)))

    def _finest(self, op: ir.Op, steps: _Floats) -> float:
        """Return what the scale of an output must be at least.

        It must exceed the steps of all sums that are rounded into it. Where few channels have far
        coarser ones than others, as behind a BatchNorm that was hardly fed, it is better to shrink
        their weights than to give every channel such steps; whichever loses least, judged by how
        the channels vary.

        Args:
            op: The weighted op.
            steps: Of the sums of each channel.
        """
        if _weight_name(op) in self.trained.weights or self.grid is not _float32:
            return float(steps.max())
        values = self.side_by_side.real[op.output]
        variance = values.reshape(-1, values.shape[-1]).var(axis=0, dtype=np.float64)
        if math.sqrt(variance.max()) <= CONSTANT * float(np.abs(values).max()):
            return float(steps.max())  # nothing tells what a channel is worth
        span = self.ranges[op.output].span
        choices = np.maximum(np.unique(steps), span / 255)
        kept = np.minimum(1, _ratio(choices[:, None], steps))
        lost = np.square(choices) * len(steps) / 12 + (np.square(1 - kept) * variance).sum(axis=1)
        return min(float(choices[np.argmin(lost)]), float(steps.max()))

    def _fitted(
        self, op: ir.Op, weight: _Floats, made: _Floats, bias: _Floats, scale: _Floats
    ) -> tuple[_Floats, _Floats]:
        """Return the integers of weights, and a bias that keeps the means of outputs.

        Args:
            op: The weighted op.
            weight: Of the float model.
            made: What the integers are to be: the same, or less in channels that are shrunk.
            bias: Of the float model.
            scale: Of each output channel.
        """
        real, rounded = (
            each[op.inputs[0]] for each in (self.side_by_side.real, self.side_by_side.rounded)
        )
        groups = groups_of(self.graph, op)
        target = fit.by_group(op, made, groups)
        steps = scale.reshape(target.shape[:2])
        integers = _rounded(target, steps[..., None], self.most)
        if self.most < 127 and target.shape[2] <= fit.MOST_TERMS:
            moments = fit.moments(op, real, rounded, groups)
            integers = fit.descend(target, integers, steps, self.most, *moments)
        expected = fit.by_group(op, weight, groups) @ fit.means(op, real, groups)[..., None]
        actual = integers @ fit.means(op, rounded, groups)[..., None] * steps[..., None]
        return fit.as_weight(op, integers, weight.shape), bias + (expected - actual).ravel()

    def _weight_scale(self, op: ir.Op, rows: _Floats) -> tuple[_Floats, int]:
        """Return the scale of the codes of each row, and how large they may be."""
        codes = self.trained.weights.get(_weight_name(op))
        if codes is None:
            return _weight_scale(rows, self.most, self.grid), self.most
        return _trained_scale(op, rows, codes), 127

    def _weighted_output(self, op: ir.Op, input_scale: float) -> ir.Quantization:
        codes = self.trained.outputs.get(_weight_name(op))
        # Where something reads it before its activation, this is not what training read.
        is_own = op.output not in self.joined and op.output not in self.symmetric
        if codes is not None and is_own and codes[2] == (op.activation == "none"):
            known = _quantization(codes)
            if known.scale[0] >= input_scale / _LARGEST_OF_SUMS:
                return known
        unused = self.tensors[op.inputs[0]].scale * _UNUSED
        return self._affine(op.output, input_scale / _LARGEST_OF_SUMS, unused)

    def _constants(
        self, op: ir.Op, names: tuple[str, str], integers: _Floats, bias: _Floats, scale: _Floats
    ) -> None:
        bias_scale = self.tensors[op.inputs[0]].scale * scale
        _check_bias_scale(op, bias_scale)
        # Only of a channel that was shrunk much is it more, and that is saturated with less.
        offsets = np.clip(np.rint(bias / bias_scale), -_BIAS_LIMIT, _BIAS_LIMIT)
        _check_accumulator(op, integers.astype(np.int8), offsets)
        axis = CHANNEL_AXIS[op.kind]
        self._constant(names[0], integers.astype(np.int8), scale, axis)
        self._constant(names[1], offsets.astype(np.int32), _float32(bias_scale), 0)

    def _constant(self, name: str, data: ir.Array, scale: NDArray[np.float64], axis: int) -> None:
        quantization = ir.Quantization(tuple(scale.tolist()), (0,) * len(scale), axis)
        dtype: ir.DType = "int8" if data.dtype == np.int8 else "int32"
        self.tensors[name] = ir.Tensor(name, data.shape, dtype, data, quantization)


def _narrow(name: str, data: ir.Array, how: ir.Quantization) -> ir.Tensor:
    """Return a constant as int8 of a scale."""
    (scale,), (zero,) = how.scale, how.zero_point
    integers = np.clip(np.rint(data.astype(np.float64) / scale) + zero, -128, 127)
    return ir.Tensor(name, data.shape, "int8", integers.astype(np.int8), how)


def _wide(name: str, data: ir.Array) -> ir.Tensor:
    """Return a constant as integers of 30 bits, which lose nothing that float32 holds of it."""
    most = float(np.abs(data).max())
    scale = float(np.float32(max(most / 2**_WIDE_BITS, _SMALLEST_NORMAL)))
    integers = np.rint(data.astype(np.float64) / scale).astype(np.int32)
    return ir.Tensor(name, data.shape, "int32", integers, ir.Quantization((scale,), (0,)))


def _affine(seen: Range, least: float, unused: float, grid: _Grid) -> ir.Quantization:
    """Return scale and zero point for a range.

    Args:
        seen: The range.
        least: What the scale is at least.
        unused: What it is at least if nothing but 0 is in the range.
        grid: What it may be.
    """
    is_empty = seen.span < EMPTY
    scale = float(grid(np.array(max(unused if is_empty else seen.span / 255, least))))
    return ir.Quantization((scale,), (0,)) if is_empty else _with_scale(seen, scale)


def _with_scale(seen: Range, scale: float) -> ir.Quantization:
    zero_point = int(np.clip(np.rint(-128 - seen.low / scale), -128, 127))
    return ir.Quantization((scale,), (zero_point,))


def _with_whole_offset(seen: Range, x: ir.Tensor, out: ir.Quantization) -> ir.Quantization:
    """Widen the scale of a mean until a cut-off in TFLite's kernel cuts nothing.

    The optimised built-in kernel truncates zero point * input scale / output scale to an integer,
    which shifts every mean by up to one step. The scale grows by at most 1/32 to make that product
    whole, less a hair, so that rounding in float32 cannot bring it below.
    """
    offset = abs(x.zero_point) * x.scale / out.scale[0]
    if offset < _SMALLEST_WHOLE_OFFSET:
        return out
    scale = abs(x.zero_point) * x.scale / (int(offset) + _HAIR)
    return _with_scale(seen, float(np.float32(scale)))


def _weight_name(op: ir.Op) -> str:
    return f"{op.source}.weight"


def _quantization(codes: Codes) -> ir.Quantization:
    """Return scale and zero point for codes of training.

    Codes from 0 end where int8 ends, so that few bits are cut off as in training. Signed ones of
    few bits would need a clamp at either side: they keep their range and get finer steps.
    """
    step, most, signed = codes
    scale, zero_point = (step * most / 127, 0) if signed else (step, 127 - most)
    return ir.Quantization((float(np.float32(scale)),), (zero_point,))


def _trained_scale(op: ir.Op, rows: _Floats, codes: NDArray[np.int8]) -> _Floats:
    """Return per row the step of trained integers; 0 for a row of zeros.

    A norm that was folded into the row changes its step and sign, a layout the order.
    """
    integers = np.abs(codes.astype(np.float64).reshape(len(codes), -1))
    if integers.shape == rows.shape:
        step: _Floats = np.abs(rows).max(axis=1) / np.maximum(integers.max(axis=1), 1)
        found = np.abs(np.rint(rows / np.maximum(step, _TINY)[:, None]))
        kept = np.sort(found, axis=1) == np.sort(integers, axis=1)
        if (kept.all(axis=1) | (step == 0)).all():
            return step
    raise ExportError(
        f"layer {op.source!r} has weights that are not the trained integers times a step per "
        "channel; load the model with the state that belongs to the integers"
    )


def _weight_scale(rows: _Floats, most: int, grid: _Grid) -> _Floats:
    """Return per row the scale of its codes, which reach +-most.

    8 bits hold the largest value. With fewer, or powers of two, finer steps of a clipped range may
    be worth more than what they cut off.
    """
    largest: _Floats = np.abs(rows).max(axis=1)
    if most == 127 and grid is _float32:
        return grid(largest / most)
    scales = [grid(largest * share / most) for share in np.linspace(0.3, 1.0, 36)]
    errors = []
    for scale in scales:
        step = np.maximum(scale, _TINY)[:, None]
        errors.append(np.square(_rounded(rows, step, most) * step - rows).sum(axis=1))
    best = np.argmin(errors, axis=0)
    return np.asarray(np.asarray(scales)[best, np.arange(len(rows))])


def _rounded(
    values: NDArray[np.float64], scale: NDArray[np.float64], most: int
) -> NDArray[np.float64]:
    return np.asarray(np.clip(np.rint(values / scale), -most, most))


def _check_accumulator(op: ir.Op, weight: NDArray[np.int8], bias: _Floats) -> None:
    worst = integers.accumulator_bound(weight, bias, op.kind)
    if worst >= 2**31:
        raise ExportError(
            f"layer {op.source!r} sums up to {worst} in an accumulator of 32 bits; "
            f"split the layer or prune it"
        )


def _check_bias_scale(op: ir.Op, scale: _Floats) -> None:
    least, most = float(scale.min()), float(scale.max())
    if least < _SMALLEST_NORMAL or most > np.finfo(np.float32).max:
        raise ExportError(
            f"layer {op.source!r} has sums in steps of {least:.3g} to {most:.3g}, which float32 "
            f"does not hold; scale its weights or the model's inputs by a constant"
        )


def _ratio(values: _Floats, scale: _Floats) -> _Floats:
    """Return values in steps of a scale; 1 where that is 0."""
    values, scale = np.broadcast_arrays(values, scale)
    return np.divide(values, scale, out=np.ones_like(values), where=scale > 0)


def _float32(values: _Floats) -> NDArray[np.float64]:
    """Round to what the file can hold, so that every target sees the same scales."""
    return values.astype(np.float32).astype(np.float64)


def _power_of_two(values: _Floats) -> _Floats:
    """Return the least powers of two that are not below; 0 stays."""
    fraction, exponent = np.frexp(values)
    return np.asarray(np.where(values > 0, np.ldexp(1.0, exponent - (fraction == 0.5)), 0.0))


_GRIDS: Mapping[str, _Grid] = {"float": _float32, "pow2": _power_of_two}
