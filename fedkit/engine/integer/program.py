"""One network, one batch after another: what real number every integer stands for.

The backend computes integers. This file keeps, per tensor and channel, what they are worth, and
chooses from that the multipliers and shifts of the next step: some float64 arithmetic per channel,
none per element. It is the same for every backend, so that all give the same integers.

Forward, an op writes int16 sums, which are requantised into int8: normalised values with 4 bits
behind the point where the tensor has a norm, else in steps of 1/127 of the largest. What a layer
reads of them has the layer's bits. Backward, gradients are int16; a layer rounds them at random to
its bits, with scales of its channels chosen by the `gradient` rule, before it multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import EngineError
from fedkit.core.numerics import K, derive_key, shift_right_half_up
from fedkit.engine.integer.backend import Backend
from fedkit.engine.integer.constants import (
    CARRIED,
    CLIP,
    CODE,
    ONE,
    WIDE,
    Carrier,
    Chain,
    Ints,
    Mix,
    Read,
    Reals,
    Requantisation,
    chain_constants,
    first_bits,
    mix_constants,
    multiplier,
    read_constants,
    shift_to_fit,
    to_int32,
)
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.integer.integer_network import Codes, IntegerNetwork
from fedkit.engine.integer.layer_norm import (
    FACTOR_SHIFT,
    HAT_BITS,
    SCALE_SHIFT,
    Scale,
    deviation_constants,
    most_of,
)
from fedkit.engine.integer.loss import cross_entropy
from fedkit.engine.plan.checks import check_inputs, check_order, check_statistics, check_targets
from fedkit.engine.plan.execution import (
    Backward,
    Contribution,
    Finish,
    Forward,
    forward_schedule,
    training_schedule,
)
from fedkit.engine.plan.plan import Add, Conv, Copy, LayerNorm, Norm, Pool, StoredTensor, sources
from fedkit.sparse.state import ModelState

_LEAST = 1e-100
"""Gradients below count as 0."""

_FINER = 8
"""Bits that raw has behind those of the code where a layer norm wrote it."""

_BIAS = 2.0**26
"""Largest bias in units of a layer's sums."""

Mode = Literal["train", "statistics", "evaluate"]


@dataclass
class Statistics:
    """What a norm saw: per channel the mean and the spread, as `NormState.variance` counts it.

    Attributes:
        mean: Real numbers.
        deviation: What the values were divided by, with eps.
        variance: Biased; for an L1 norm the square of its deviation without eps.
    """

    mean: Reals
    deviation: Reals
    variance: Reals


@dataclass(frozen=True)
class Worth:
    """What a stored tensor's codes are worth, per channel: factor * x + offset."""

    factor: Reals
    offset: Reals
    bound: float
    """Largest magnitude a read can give."""


@dataclass(frozen=True)
class Slope:
    """What a gradient's integers are worth, per channel, and how large they are at most."""

    unit: Reals
    most: Reals


class IntegerProgram:
    """Runs one network on batches.

    Args:
        network: The model and its weights.
        backend: Makes who computes, once the schedule is known.
        mode: What it is to do.
        batch: Most examples of one batch.
        gradient: How gradients are scaled, a row of `gradients.RULES`.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        backend: Callable[[IntegerProgram], Backend],
        mode: Mode,
        batch: int,
        gradient: str = "shiftquant",
    ) -> None:
        self.network, self.mode, self.batch = network, mode, batch
        self._plan, self._rule = network.plan, RULES[gradient]
        self.schedule = (
            training_schedule(self._plan) if mode == "train" else forward_schedule(self._plan)
        )
        self._backend = backend(self)
        read = {tensor for op in self._plan.ops for tensor in sources(op)}
        writer = {op.target: op for op in self._plan.ops}[self._plan.output]
        plain = self._plan.tensors[self._plan.output].activation == "none"
        self._output_is_raw = plain and isinstance(writer, Conv) and self._plan.output not in read
        layers = (op for op in self._plan.ops if isinstance(op, LayerNorm))
        self._layered = {op.target for op in layers if self._plan.tensors[op.target].norm is None}
        self.restart(0)
        self._running: ModelState | None = None
        self._worth: dict[int, Worth] = {}
        self._examples = 0
        self.gradient = np.zeros(len(network.weights), np.int64)
        self.gradient_units: dict[str, Reals] = {}
        self.statistics: dict[int, Statistics] = {}

    def use_running(self, state: ModelState | None) -> None:
        """Normalise by a state's running statistics, or by the batch's where that is possible."""
        self._running = state

    def restart(self, seed: int) -> None:
        """Start the draws of random rounding anew."""
        self.seed, self._step = seed, 0

    def norm_reads(self) -> dict[int, tuple[float, int]]:
        """Return what 1 is worth to the layers that read a norm's output, and the most they read.

        By number of the op; no batch changes it.
        """
        self._worth = {
            tensor: self._norm_worth(tensor, n) for tensor, n in self.network.norms.items()
        }
        found = {}
        for number, layer in self.network.layers.items():
            if (source := layer.geometry.op.source) in self._worth:
                read, unit = self._layer_read(number, source)
                found[number] = unit, read.high
        return found

    # Forward

    def forward(self, inputs: NDArray[np.int8], scale: float, order: NDArray[np.int64]) -> None:
        """Run the examples inputs[order] forward.

        Args:
            inputs: int8 [.., channels, height, width].
            scale: What 1 stands for.
            order: Which examples, integers [n].

        Raises:
            EngineError: There are more of them than planned, none, too few for a norm, or they
                have another shape; or a layer's sums may leave int32.
        """
        order = np.ascontiguousarray(order, np.int64)
        check_inputs(self._plan, inputs, np.int8)
        check_order(order, len(inputs), self.batch)
        if self.mode != "evaluate":
            check_statistics(self._plan, len(order))
        self._examples = len(order)
        self._backend.begin(len(order))
        channels = self._plan.tensors[0].shape[0]
        plain = Worth(np.full(channels, scale), np.zeros(channels), CODE * scale)
        self._worth = {0: plain}
        self._raw_unit: dict[int, Reals] = {}
        self._deviation: dict[int, Reals] = {}
        self._inverse: dict[int, Reals] = {}
        self._reads: dict[int, tuple[Read, float]] = {}
        self._codes: dict[int, Codes] = {}
        self._backend.load(inputs, order)
        for step in self.schedule.steps:
            if isinstance(step, Forward):
                self._forward_op(step.op)
                if step.completes:
                    self._requantise(self._plan.ops[step.op].target)

    def _forward_op(self, number: int) -> None:
        op = self._plan.ops[number]
        if isinstance(op, Conv):
            self._conv_forward(number, op)
        elif isinstance(op, Add):
            bounds = [self._worth[side].bound for side in (op.left, op.right)]
            unit = sum(bounds) / WIDE
            high = int(bounds[0] / sum(bounds) * WIDE)
            left, right = (
                self._read(side, unit, most)
                for side, most in ((op.left, high), (op.right, WIDE - high))
            )
            self._backend.add_forward(number, left, right)
            self._raw_unit[op.target] = np.full(self._channels(op.target), unit)
        elif isinstance(op, Copy):
            unit = self._worth[op.source].bound / WIDE
            self._backend.copy_forward(number, self._read(op.source, unit, WIDE))
            units = self._raw_unit.setdefault(op.target, np.zeros(self._channels(op.target)))
            units[op.channel : op.channel + self._copied(op)] = unit
        elif isinstance(op, LayerNorm):
            self._layer_forward(number, op)
        else:
            self._pool_forward(number, op)

    def _copied(self, op: Copy) -> int:
        """Return how many channels of its target a copy fills."""
        plane = math.prod(self._plan.tensors[op.target].shape[1:])
        return math.prod(self._plan.tensors[op.source].shape) // plane

    def _conv_forward(self, number: int, op: Conv) -> None:
        read, unit = self._reads[number] = self._layer_read(number, op.source)
        real_bias = self.network.real(op.bias) if op.bias else np.zeros(self._channels(op.target))
        codes = self._codes[number] = self.network.codes(number, np.abs(real_bias) / unit / _BIAS)
        sums = self.network.row_sums(number, np.abs(codes.values))
        worth = unit * codes.scale
        bias = np.rint(real_bias / worth)
        bound = sums * max(read.high, -read.low) + np.abs(bias)
        self._check_sums(number, op, bound)
        shift = shift_to_fit(bound)
        self._backend.conv_forward(number, read, codes, to_int32(bias), shift)
        self._raw_unit[op.target] = np.ldexp(worth, shift)

    def _check_sums(self, number: int, op: Conv, bound: Reals) -> None:
        if bound.max() >= 2**30:
            raise EngineError(
                f"the sums of {op.weight} may reach {bound.max():.3g}, int32 holds 2^31 with room "
                f"for rounding up to 2^30; use fewer bits than {self.network.layer_bits(number)}"
            )

    def _pool_forward(self, number: int, op: Pool) -> None:
        area = math.prod(op.kernel) if op.operation == "mean" else 1
        high = _most_of(area)
        unit = self._worth[op.source].bound / high
        read = self._read(op.source, unit, high)
        shift = int(shift_to_fit(np.array([high * float(area)]))[0])
        self._reads[number] = read, unit
        self._backend.pool_forward(number, read, shift)
        self._raw_unit[op.target] = np.full(self._channels(op.target), unit * 2.0**shift / area)

    def _layer_forward(self, number: int, op: LayerNorm) -> None:
        count = math.prod(self._plan.tensors[op.source].shape)
        unit = self._worth[op.source].bound / most_of(count)
        read = self._read(op.source, unit, most_of(count))
        self._reads[number] = read, unit
        l1 = op.kind == "l1-layer"
        how = deviation_constants(op.kind, count, op.eps / (unit if l1 else unit**2))
        scale, codes = self._layer_scale(op)
        multiplier, shift = self._backend.layer_forward(number, read, how, scale)
        inverse = np.ldexp(multiplier.astype(np.float64), -shift - HAT_BITS) / unit
        # Where eps is far beyond what is normalised it was cut off.
        self._inverse[number] = np.minimum(inverse, 1.0 / (op.eps if l1 else math.sqrt(op.eps)))
        self._raw_unit[op.target] = np.ldexp(codes, -_FINER)

    def _layer_scale(self, op: LayerNorm) -> tuple[Scale, Reals]:
        """Return how normalised values become raw, and per channel what a code is worth then.

        Codes have 4 bits behind the point where a channel's largest scale is 1, and no offset.
        """
        elements = self._plan.tensors[op.target].shape
        (weight, weight_point), (bias, bias_point) = (
            self._elements(name, default, elements)
            for name, default in ((op.weight, 1), (op.bias, 0))
        )
        largest = [
            np.ldexp(np.abs(part).max(1).astype(np.float64), -point)
            for part, point in ((weight, weight_point), (bias, bias_point))
        ]
        codes = largest[0] * ONE + largest[1] / CODE
        # As for a layer's weights: a channel of zeros has codes 0 at any scale.
        positive = codes[codes > 0]
        codes = np.where(codes > 0, codes, positive.min() if positive.size else 1.0)
        raw = np.ldexp(1.0 / codes, SCALE_SHIFT + _FINER)
        a = _scaled(weight, np.ldexp(raw, -HAT_BITS - weight_point))
        return Scale(a, _scaled(bias, np.ldexp(raw, -bias_point))), codes

    def _elements(
        self, name: str | None, default: int, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.int64], int]:
        """Return a parameter's fixed-point values, int64 [channels, plane], and their point."""
        if name is None:
            return np.full((shape[0], math.prod(shape[1:])), default, np.int64), 0
        whole = self.network.part(name, self.network.weights).astype(np.int64)
        return whole.reshape(shape[0], -1), self.network.points[name]

    # Reading

    def _read(self, tensor: int, unit: float, high: int) -> Read:
        """Return how to read a tensor in steps of `unit`, up to `high`."""
        worth, activation = self._worth[tensor], self._plan.tensors[tensor].activation
        return read_constants(
            worth.factor / unit, worth.offset / unit, activation, high, 6.0 / unit
        )

    def _layer_read(self, number: int, tensor: int) -> tuple[Read, float]:
        """Return how a layer reads a tensor with its bits, and what the result 1 is worth.

        Without an activation results are signed, else not. They are clipped where a normal
        distribution of their spread asks for it; an activation's results are taken for the half of
        one, which needs a bit more.
        """
        bits, what = self.network.layer_bits(number), self._plan.tensors[tensor]
        worth, signed = self._worth[tensor], what.activation == "none"
        if bits == 8 and what.norm is None and tensor not in self._layered:
            # Stored in 8 bits already.
            unit = float(worth.factor[0])
            return self._read(tensor, unit, CODE), unit
        high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        spread = self._spread(tensor, what)
        widest = CLIP[bits] if signed else math.sqrt(2) * CLIP[bits + 1]
        unit = (min(worth.bound, widest * spread) or 1.0) / high
        read = self._read(tensor, unit, high)
        return replace(read, clips=widest * spread < worth.bound), unit

    def _spread(self, tensor: int, what: StoredTensor) -> float:
        """Return the root mean square of what is read of a tensor."""
        worth = self._worth[tensor]
        if what.norm is None:
            unit = float(worth.factor.max())
            sums = self._backend.read_squares(tensor, self._read(tensor, unit, CODE))
            return unit * math.sqrt(sums.sum() / self._count(tensor) / len(sums))
        scale, shift = worth.factor / ONE, worth.offset
        squares = scale**2 + shift**2
        if what.activation != "none":
            squares = _rectified(shift, np.abs(scale))
        return math.sqrt(squares.mean())

    # Requantisation

    def _requantise(self, tensor: int) -> None:
        norm = self._plan.tensors[tensor].norm
        if norm is not None:
            self._requantise_norm(tensor, norm)
        elif tensor in self._layered:
            self._requantise_layer(tensor)
        elif tensor != self._plan.output or not self._output_is_raw:
            self._requantise_plain(tensor)

    def _requantise_plain(self, tensor: int) -> None:
        unit = self._raw_unit[tensor]
        _, peak = self._backend.raw_sums(tensor)
        largest = float((peak * unit).max())
        if self._plan.tensors[tensor].activation == "relu6":
            # The code 127 lies beyond 6, so that 6 is told from what is larger.
            largest = min(largest, 6.0 * CODE / (CODE - 1))
        scale = largest / CODE or 1.0
        a, shift = multiplier(unit / scale, 20)
        zero = np.zeros_like(a)
        self._backend.requantise(tensor, Requantisation(zero, a, zero, shift))
        channels = len(unit)
        activation = self._plan.tensors[tensor].activation
        bound = CODE * scale if activation != "relu6" else min(6.0, CODE * scale)
        self._worth[tensor] = Worth(np.full(channels, scale), np.zeros(channels), bound)

    def _requantise_layer(self, tensor: int) -> None:
        codes = np.ldexp(self._raw_unit[tensor], _FINER)
        zero = np.zeros(len(codes), np.int32)
        self._backend.requantise(tensor, Requantisation(zero, zero + 1, zero, zero + _FINER))
        bound = CODE * float(codes.max())
        if self._plan.tensors[tensor].activation == "relu6":
            bound = min(bound, 6.0)
        self._worth[tensor] = Worth(codes, np.zeros(len(codes)), bound)

    def _requantise_norm(self, tensor: int, norm: Norm) -> None:
        unit = self._raw_unit[tensor]
        if self.mode != "evaluate":
            mean, deviation, variance = self._batch_moments(tensor, norm, unit)
            self.statistics[tensor] = Statistics(
                mean * unit, deviation * unit, variance * np.square(unit)
            )
        if self._running is not None:
            mean, deviation = self._running_moments(norm, unit)
        centre = _centre(mean)
        a, shift = multiplier(1.0 / (ONE * deviation), 29)
        offset = np.rint((centre - mean) * a)
        how = Requantisation(
            to_int32(centre), a, to_int32(np.clip(offset, -(2.0**29), 2.0**29)), shift
        )
        self._backend.requantise(tensor, how)
        self._deviation[tensor] = deviation * unit
        self._worth[tensor] = self._norm_worth(tensor, norm)

    def _norm_worth(self, tensor: int, norm: Norm) -> Worth:
        scale, offset = self._affine(norm, self._channels(tensor))
        bound = float((np.abs(scale) * CODE * ONE + np.abs(offset)).max())
        if self._plan.tensors[tensor].activation == "relu6":
            bound = min(bound, 6.0)
        return Worth(scale * ONE, offset, bound or 1.0)

    def _batch_moments(self, tensor: int, norm: Norm, unit: Reals) -> tuple[Reals, Reals, Reals]:
        """Return mean, deviation and variance of raw, in its steps."""
        count = self._count(tensor)
        if norm.kind == "l1-batch":
            mean = self._backend.raw_sums(tensor)[0] / count
            around = mean if self._running is None else self._running_moments(norm, unit)[0]
            spread = K * self._backend.raw_spread(tensor, to_int32(_centre(around))) / count
            return mean, spread + norm.eps / unit, np.square(spread)
        # Sums of integers are exact, so that nothing cancels but the last rounding of each.
        total, squares = self._backend.raw_squares(tensor)
        mean = total / count
        variance = np.maximum(squares / count - np.square(mean), 0.0)
        return mean, np.sqrt(variance + norm.eps / np.square(unit)), variance

    def _running_moments(self, norm: Norm, unit: Reals) -> tuple[Reals, Reals]:
        assert self._running is not None
        mean, variance = (self._running.stats[n].astype(np.float64) for n in norm.stats)
        l1 = norm.kind == "l1-batch"
        deviation = np.sqrt(variance) + norm.eps if l1 else np.sqrt(variance + norm.eps)
        return mean / unit, deviation / unit

    def _affine(self, norm: Norm, channels: int) -> tuple[Reals, Reals]:
        scale = self.network.real(norm.weight) if norm.weight else np.ones(channels)
        offset = self.network.real(norm.bias) if norm.bias else np.zeros(channels)
        return scale, offset

    # The output

    def outputs(self) -> NDArray[np.float64]:
        """Return the logits of the batch, [n, classes]."""
        output = self._plan.output
        if self._output_is_raw:
            rows = self._backend.raw_rows(output).astype(np.float64)
            return (rows * self._raw_unit[output][:, None, None]).reshape(self._examples, -1)
        worth = self._worth[output]
        codes = self._backend.codes(output).astype(np.float64)
        values = codes * worth.factor[:, None, None] + worth.offset[:, None, None]
        activation = self._plan.tensors[output].activation
        if activation != "none":
            values = np.clip(values, 0.0, 6.0 if activation == "relu6" else None)
        return np.asarray(values.reshape(self._examples, -1))

    def loss(self, targets: NDArray[np.int64]) -> float:
        """Return the mean cross-entropy of the batch; in training, start the backward pass.

        Raises:
            EngineError: The targets are not classes of the model, or not as many as the examples.
        """
        check_targets(self._plan, targets, self._examples)
        loss, gradient = cross_entropy(self.outputs(), targets)
        if self.mode == "train":
            output = self._plan.output
            self._backend.set_gradient(output, gradient.reshape(*gradient.shape, 1, 1))
            classes = gradient.shape[1]
            self._slopes = {
                output: Slope(
                    np.full(classes, 1.0 / (WIDE * self._examples)), np.full(classes, float(WIDE))
                )
            }
        return loss

    # Backward

    def backward(self, before: Callable[[int], None] | None = None) -> None:
        """Compute `gradient` for the batch whose loss was taken."""
        self.gradient[:] = 0
        self._finished = set[int]()
        self._chains: dict[int, tuple[Reals, Reals, Reals, Carrier]] = {}
        for step in self.schedule.steps:
            if isinstance(step, Finish):
                self._finish(step.tensor)
            elif isinstance(step, Backward):
                if before is not None:
                    before(step.op)
                self._backward_op(step)
        self._step += 1

    def _finish(self, tensor: int) -> None:
        """Pass a gradient through its activation, and find how it passes through the norm."""
        what, slope = self._plan.tensors[tensor], self._slopes[tensor]
        read = None
        if what.activation != "none":
            read = self._read(tensor, self._worth[tensor].bound / WIDE, WIDE)
        sums, peak = self._backend.finish(tensor, read)
        self._finished.add(tensor)
        slope = self._slopes[tensor] = Slope(slope.unit, peak.astype(np.float64))
        if what.norm is not None:
            self._norm_backward(tensor, what.norm, sums.astype(np.float64), slope)

    def _norm_backward(self, tensor: int, norm: Norm, sums: Reals, slope: Slope) -> None:
        _, _, signs, total, along = sums.T
        count = self._count(tensor)
        for name, gradient in ((norm.bias, sums[:, 0]), (norm.weight, sums[:, 1] * ONE)):
            if name:
                self._norm_gradient(name, gradient, slope.unit)
        scale, _ = self._affine(norm, len(total))
        a = scale / self._deviation[tensor]
        along = along * ONE / count
        if norm.kind == "l1-batch":
            b = -a * K * along
            self._chains[tensor] = a, b, -a * total / count - b * signs / count, "sign"
        else:
            self._chains[tensor] = a, -a * along * ONE, -a * total / count, "x"

    def _norm_gradient(self, name: str, gradient: Reals, unit: Reals) -> None:
        # The sums are integers, the 4 bits of ONE go to the unit.
        self.network.part(name, self.gradient)[:] = np.rint(gradient / ONE).astype(np.int64)
        self.gradient_units[name] = unit * ONE

    def _chain(self, tensor: int) -> tuple[Reals, Reals, Reals, Carrier]:
        zero = np.zeros(self._channels(tensor))
        return self._chains.get(tensor, (zero + 1.0, zero, zero, "none"))

    def _passed_bound(self, tensor: int) -> Reals:
        """Return a bound of the passed gradient's magnitude per channel, in real units."""
        (a, b, c, carrier), slope = self._chain(tensor), self._slopes[tensor]
        reach = np.abs(a) * slope.most + np.abs(b) * CARRIED[carrier] + np.abs(c)
        return np.asarray(slope.unit * reach)

    def _passed_range(self, tensor: int) -> Reals:
        """Return what no passed gradient exceeds, per channel, in real units.

        Behind a norm that is a bound, a few percent above the largest, for another look at all
        gradients would tell little more.
        """
        bound = self._passed_bound(tensor)
        if tensor in self._finished:
            return bound
        unit = np.maximum(bound, _LEAST) / WIDE
        return self._backend.passed_peak(tensor, self._chain_in(tensor, unit, WIDE)) * unit

    def _chain_in(
        self,
        tensor: int,
        unit: Reals,
        limit: int,
        factor: Ints | None = None,
        key: int | None = None,
    ) -> Chain:
        """Return how to pass a tensor's gradient, in units of the result."""
        (a, b, c, carrier), slope = self._chain(tensor), self._slopes[tensor]
        a, b, c = (part * slope.unit / unit for part in (a, b, c))
        return chain_constants(a, b, c, carrier, slope.most, limit, factor, key)

    def _backward_op(self, step: Backward) -> None:
        op = self._plan.ops[step.op]
        if isinstance(op, Conv):
            self._conv_backward(step.op, op, step.contributions)
            return
        if isinstance(op, LayerNorm):
            self._layer_backward(step.op, op, step.contributions)
            return
        for given in step.contributions:
            if given.shared:
                self._backend.share_gradient(op.target, given.tensor)
                self._slopes[given.tensor] = self._slopes[op.target]
            elif isinstance(op, Pool):
                self._pool_backward(step.op, op, given)
            else:
                self._copy_backward(step.op, given, op.channel if isinstance(op, Copy) else 0)

    def _conv_backward(self, number: int, op: Conv, given: tuple[Contribution, ...]) -> None:
        codes, (read, unit_in) = self._codes[number], self._reads[number]
        bits = self.network.layer_bits(number)
        most = 2 ** (bits - 1) - 1
        ranges = self._passed_range(op.target)
        # The scales of the weights' rows go to the gradient, so that products have one scale.
        factor, unit = self._rule(ranges * codes.scale, bits)
        step = unit * factor / codes.scale
        key = derive_key(self.seed, self._step, number)
        chain = self._chain_in(op.target, step, most, factor=to_int32(factor), key=key)
        shift, mix = np.zeros(self._channels(op.source), np.int32), None
        if given:
            bound = most * self.network.column_sums(number, np.abs(codes.values), factor)
            self._check_sums(number, op, bound)
            shift = shift_to_fit(bound)
            new = Slope(np.ldexp(unit, shift), np.full(len(shift), float(WIDE)))
            mix = self._give(given[0], new)
        gradient, sums = self._backend.conv_backward(
            number, read, chain, shift, mix, source=bool(given)
        )
        self.network.part(op.weight, self.gradient)[:] = gradient
        self.gradient_units[op.weight] = unit * unit_in / codes.scale
        if op.bias:
            self.network.part(op.bias, self.gradient)[:] = sums
            self.gradient_units[op.bias] = unit / codes.scale
        for contribution in given:
            if contribution.finish:
                self._finish(contribution.tensor)

    def _layer_backward(self, number: int, op: LayerNorm, given: tuple[Contribution, ...]) -> None:
        read, _ = self._reads[number]
        unit = np.maximum(self._passed_bound(op.target), _LEAST) / WIDE
        chain = self._chain_in(op.target, unit, WIDE)
        # Of the normalised values, under one scale for all elements of an example.
        weight, point = self._elements(op.weight, 1, self._plan.tensors[op.target].shape)
        top = float((np.ldexp(np.abs(weight).max(1).astype(np.float64), -point) * unit).max())
        top = max(top, _LEAST / WIDE)
        factor = _scaled(weight, np.ldexp(unit / top, FACTOR_SHIFT - point))
        per_element, sums, peak = self._backend.layer_sums(number, read, chain, factor)
        for name, gradient, worth in (
            (op.weight, per_element[:, 0], np.ldexp(unit, -HAT_BITS)),
            (op.bias, per_element[:, 1], unit),
        ):
            if name:
                self.network.part(name, self.gradient)[:] = gradient
                self.gradient_units[name] = worth
        for contribution in given:
            out, slope = self._layer_out(number, op, sums.astype(np.float64), peak, top)
            mix = self._give(contribution, slope)
            self._backend.layer_backward(number, read, chain, factor, out, mix)

    def _layer_out(
        self, number: int, op: LayerNorm, sums: Reals, peak: Ints, unit: float
    ) -> tuple[Chain, Slope]:
        """Return how each example's gradient passes through its norm, and what comes out.

        Args:
            number: The op.
            op: The same.
            sums: As of `Backend.layer_sums`.
            peak: Likewise.
            unit: What 1 is worth of them.
        """
        shape = self._plan.tensors[op.source].shape
        mean, along, sign = sums.T / math.prod(shape)
        a = self._inverse[number] * unit
        b = -a * np.ldexp(along, -HAT_BITS)
        carrier: Carrier = "hat"
        if op.kind == "l1-layer":
            b, carrier = b * K, "sign"
            c = -a * mean - b * sign
        else:
            b, c = np.ldexp(b, -HAT_BITS), -a * mean
        most = peak.astype(np.float64)
        reach = np.abs(a) * most + np.abs(b) * CARRIED[carrier] + np.abs(c)
        result = max(float(reach.max()), _LEAST) / WIDE
        key = derive_key(self.seed, self._step, number)
        a, b, c = (part / result for part in (a, b, c))
        out = chain_constants(a, b, c, carrier, most, WIDE, key=key)
        channels = shape[0]
        return out, Slope(np.full(channels, result), np.full(channels, float(WIDE)))

    def _copy_backward(self, number: int, given: Contribution, channel: int) -> None:
        target, channels = self._plan.ops[number].target, self._channels(given.tensor)
        elements = math.prod(self._plan.tensors[given.tensor].shape)
        count = elements // math.prod(self._plan.tensors[target].shape[1:])
        # One unit per channel of the source, which a flattened tensor has many channels of.
        taken = slice(channel, channel + count)
        bound = self._passed_bound(target)[taken].reshape(channels, -1).max(1)
        unit = np.maximum(bound, _LEAST) / WIDE
        units = np.ones(self._channels(target))
        units[taken] = np.repeat(unit, count // channels)
        chain = self._chain_in(target, units, WIDE)
        mix = self._give(given, Slope(unit, np.full(channels, float(WIDE))))
        self._backend.copy_backward(number, given.tensor, chain, channel, mix)

    def _pool_backward(self, number: int, op: Pool, given: Contribution) -> None:
        overlap = math.prod(-(-k // s) for k, s in zip(op.kernel, op.stride, strict=True))
        high = _most_of(overlap)
        unit = np.maximum(self._passed_bound(op.target), _LEAST) / high
        chain = self._chain_in(op.target, unit, high)
        shift = int(shift_to_fit(np.array([high * float(overlap)]))[0])
        unit = unit * 2.0**shift / (math.prod(op.kernel) if op.operation == "mean" else 1)
        mix = self._give(given, Slope(unit, np.full(len(unit), float(WIDE))))
        read, _ = self._reads[number]
        self._backend.pool_backward(number, read, chain, shift, mix)

    def _give(self, given: Contribution, new: Slope) -> Mix | None:
        """Note what a source's gradient is worth then; return how to add, if it holds something."""
        if not given.accumulate:
            self._slopes[given.tensor] = new
            return None
        old = self._slopes[given.tensor]
        unit = (old.unit * old.most + new.unit * new.most) / WIDE
        unit = np.maximum(unit, _LEAST)
        self._slopes[given.tensor] = Slope(unit, np.full(len(unit), float(WIDE)))
        return mix_constants(old.unit / unit, new.unit / unit)

    # Parts

    def _channels(self, tensor: int) -> int:
        return self._plan.tensors[tensor].shape[0]

    def _count(self, tensor: int) -> int:
        """Return the number of values of one channel in the batch."""
        return self._examples * math.prod(self._plan.tensors[tensor].shape[1:])


def _scaled(whole: NDArray[np.int64], factor: Reals) -> Ints:
    """Return int64 [channels, plane] times a factor per channel, rounded, int32 [elements]."""
    m, shift = multiplier(factor, 62, 2**31 - 1)
    scaled = shift_right_half_up(whole * m.astype(np.int64)[:, None], shift[:, None])
    return to_int32(np.clip(scaled, -(2**30), 2**30).ravel())


def _most_of(count: int) -> int:
    """Return the largest number of 15 bits that fits int32 when so many are added."""
    return min(WIDE, 2**30 // count)


def _centre(mean: Reals) -> Reals:
    return np.clip(np.rint(mean), -WIDE, WIDE)


def _rectified(mean: Reals, deviation: Reals) -> Reals:
    """Return the mean square of max(0, x) for normal x."""
    deviation = np.maximum(deviation, 1e-12)
    z = mean / deviation
    below = first_bits(np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z]))
    density = first_bits(np.exp(-np.square(z) / 2)) / math.sqrt(2 * math.pi)
    return np.asarray((mean**2 + deviation**2) * below + mean * deviation * density)
