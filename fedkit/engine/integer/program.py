"""One network, one batch after another: what real number every integer stands for.

The backend computes integers. This file keeps, per tensor and channel, what they are worth, and
chooses from that the multipliers and shifts of the next step: some float64 arithmetic per channel,
none per element. It is the same for every backend, so that all give the same integers: numpy runs
this file, and the kernels do the same by steps of their own where they have them, see `walk`.

Forward, an op writes int16 sums, which are requantised into int8: normalised values with 4 bits
behind the point where the tensor has a norm, else in steps of 1/127 of the largest. What a layer
reads of them has the layer's bits. Backward, gradients are int16; a layer rounds them at random to
its bits, with scales of its channels chosen by the `gradient` rule, before it multiplies.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import K, derive_key
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
    to_int32,
)
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.integer.integer_network import IntegerNetwork
from fedkit.engine.integer.integer_op import LEAST, Slope, Statistics, Worth
from fedkit.engine.integer.loss import loss_gradient
from fedkit.engine.integer.native_backend import NativeBackend
from fedkit.engine.integer.shared_units import SharedUnits, running_moments
from fedkit.engine.integer.walk import Walker
from fedkit.engine.ops.registry import integer_family
from fedkit.engine.plan.checks import check_inputs, check_order, check_statistics, check_targets
from fedkit.engine.plan.execution import (
    Backward,
    Contribution,
    Finish,
    Forward,
    forward_schedule,
    training_schedule,
)
from fedkit.engine.plan.structure import Norm, StoredTensor
from fedkit.sparse.state import ModelState
from fedkit.tasks.lazy_array import loaded

Mode = Literal["train", "statistics", "evaluate"]


class IntegerProgram:
    """Runs one network on batches.

    Args:
        network: The model and its weights.
        backend: Makes who computes, once the schedule is known.
        mode: What it is to do.
        batch: Most examples of one batch.
        gradient: How gradients are scaled, a row of `gradients.RULES`.
        trained: Names of the weights whose gradients are wanted; None: of all.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        backend: Callable[[IntegerProgram], Backend],
        mode: Mode,
        batch: int,
        gradient: str = "shiftquant",
        trained: frozenset[str] | None = None,
    ) -> None:
        self.trained = trained
        self.network, self.mode, self.batch = network, mode, batch
        self.plan, self._scaling, self._rule = network.plan, gradient, RULES[gradient]
        self.schedule = (
            training_schedule(self.plan, trained)
            if mode == "train"
            else forward_schedule(self.plan)
        )
        self._running: ModelState | None = None
        self._examples = 0
        self.gradient = np.zeros(len(network.weights), np.int64)
        self.restart(0)
        self.bind(backend(self))

    def bind(self, backend: Backend) -> None:
        """Let a backend compute."""
        self._backend = backend
        self._ops = [integer_family(op).make(op, n, backend) for n, op in enumerate(self.plan.ops)]
        backend.ready()
        read = {tensor for op in self.plan.ops for tensor in op.sources}
        writer = {op.op.target: op for op in self._ops}[self.plan.output]
        plain = self.plan.tensors[self.plan.output].activation == "none"
        self._output_is_raw = plain and writer.raw_is_output and self.plan.output not in read
        self._finer = {
            op.op.target: op.finer_bits
            for op in self._ops
            if op.finer_bits is not None and self.plan.tensors[op.op.target].norm is None
        }
        self._walker: Walker | None = None
        if isinstance(backend, NativeBackend):
            self._share(backend)
        else:
            self._keep()

    def _keep(self) -> None:
        """Hold what integers are worth here."""
        self.worth: MutableMapping[int, Worth] = {}
        self.raw_unit: MutableMapping[int, Reals] = {}
        self.slopes: MutableMapping[int, Slope] = {}
        self.statistics: MutableMapping[int, Statistics] = {}
        self.gradient_units: dict[str, Reals] = {}
        self._chains: MutableMapping[int, tuple[Reals, Reals, Reals, Carrier]] = {}
        self._deviation: dict[int, Reals] = {}
        self._finished = set[int]()

    def _share(self, backend: NativeBackend) -> None:
        """Hold it where the kernels find it, and let them run what they have steps for."""
        shared = self._shared = SharedUnits(
            *(self.network, backend, self.gradient, frozenset(self._finishing())),
            *(
                functools.partial(_is_in, self.trained),
                self.mode != "evaluate",
                self._scaling,
                self._finer,
            ),
        )
        self.worth, self.raw_unit, self.slopes = shared.worth(), shared.raw_unit(), shared.slopes()
        self.statistics, self._chains = shared.statistics(), shared.chains()
        self.gradient_units = shared.gradient_units
        tensors = {op.target for op in self.plan.ops}
        requantised = tensors - {self.plan.output} if self._output_is_raw else tensors
        self._walker = Walker(backend.kernels, shared, self.schedule, self._ops, requantised)

    def _finishing(self) -> Iterator[int]:
        """Yield the tensors whose gradients are finished."""
        for step in self.schedule.steps:
            if isinstance(step, Finish):
                yield step.tensor
            elif isinstance(step, Backward):
                yield from (given.tensor for given in step.contributions if given.finish)

    def use_running(self, state: ModelState | None) -> None:
        """Normalise by a state's running statistics, or by the batch's where that is possible."""
        self._running = state
        if self._walker is not None:
            self._shared.use_running(state)

    def restart(self, seed: int) -> None:
        """Start the draws of random rounding anew."""
        self.seed, self._step = seed, 0

    def norm_reads(self) -> dict[int, tuple[float, int]]:
        """Return what 1 is worth to the layers that read a norm's output, and the most they read.

        By number of the op; no batch changes it.
        """
        for tensor, norm in self.network.norms.items():
            self.worth[tensor] = self._norm_worth(tensor, norm)
        found = {}
        for number, layer in self.network.layers.items():
            if (source := layer.geometry.op.source) in self.network.norms:
                read, unit = self.layer_read(number, source)
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
        inputs, order = loaded(inputs, np.ascontiguousarray(order, np.int64))
        check_inputs(self.plan, inputs, np.int8)
        check_order(order, len(inputs), self.batch)
        if self.mode != "evaluate":
            check_statistics(self.plan, len(order))
        self._examples = len(order)
        self._backend.begin(len(order))
        channels = self.plan.tensors[0].shape[0]
        self.worth[0] = Worth(np.full(channels, scale), np.zeros(channels), CODE * scale)
        self._backend.load(inputs, order)
        if self._walker is not None:
            self._shared.begin(len(order), self.seed, self._step)
            self._walker.forward(self)
            return
        self.raw_unit.clear()
        for step in self.schedule.steps:
            if isinstance(step, Forward):
                self._ops[step.op].forward(self)
                if step.completes:
                    self._requantise(self.plan.ops[step.op].target)

    # Reading

    def read(self, tensor: int, unit: float, high: int) -> Read:
        """Return how to read a tensor in steps of `unit`, up to `high`."""
        worth, activation = self.worth[tensor], self.plan.tensors[tensor].activation
        return read_constants(
            worth.factor / unit, worth.offset / unit, activation, high, 6.0 / unit
        )

    def layer_read(self, number: int, tensor: int) -> tuple[Read, float]:
        """Return how a layer reads a tensor with its bits, and what the result 1 is worth.

        Without an activation results are signed, else not. They are clipped where a normal
        distribution of their spread asks for it; an activation's results are taken for the half of
        one, which needs a bit more.
        """
        bits, what = self.network.layer_bits(number), self.plan.tensors[tensor]
        worth, signed = self.worth[tensor], what.activation == "none"
        if bits == 8 and what.norm is None and tensor not in self._finer:
            # Stored in 8 bits already.
            unit = float(worth.factor[0])
            return self.read(tensor, unit, CODE), unit
        high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        spread = self._spread(tensor, what)
        widest = CLIP[bits] if signed else math.sqrt(2) * CLIP[bits + 1]
        unit = (min(worth.bound, widest * spread) or 1.0) / high
        read = self.read(tensor, unit, high)
        return replace(read, clips=widest * spread < worth.bound), unit

    def _spread(self, tensor: int, what: StoredTensor) -> float:
        """Return the root mean square of what is read of a tensor."""
        worth = self.worth[tensor]
        if what.norm is None:
            unit = float(worth.factor.max())
            sums = self._backend.read_squares(tensor, self.read(tensor, unit, CODE))
            return unit * math.sqrt(sums.sum() / self._count(tensor) / len(sums))
        scale, shift = worth.factor / ONE, worth.offset
        squares = scale**2 + shift**2
        if what.activation != "none":
            squares = _rectified(shift, np.abs(scale))
        return math.sqrt(squares.mean())

    # Requantisation

    def _requantise(self, tensor: int) -> None:
        norm = self.plan.tensors[tensor].norm
        if norm is not None:
            self._requantise_norm(tensor, norm)
        elif tensor in self._finer:
            self._requantise_finer(tensor)
        elif tensor != self.plan.output or not self._output_is_raw:
            self._requantise_plain(tensor)

    def _requantise_plain(self, tensor: int) -> None:
        unit = self.raw_unit[tensor]
        _, peak = self._backend.raw_sums(tensor)
        largest = float((peak * unit).max())
        if self.plan.tensors[tensor].activation == "relu6":
            # The code 127 lies beyond 6, so that 6 is told from what is larger.
            largest = min(largest, 6.0 * CODE / (CODE - 1))
        scale = largest / CODE or 1.0
        a, shift = multiplier(unit / scale, 20)
        zero = np.zeros_like(a)
        self._backend.requantise(tensor, Requantisation(zero, a, zero, shift))
        channels = len(unit)
        activation = self.plan.tensors[tensor].activation
        bound = CODE * scale if activation != "relu6" else min(6.0, CODE * scale)
        self.worth[tensor] = Worth(np.full(channels, scale), np.zeros(channels), bound)

    def _requantise_finer(self, tensor: int) -> None:
        finer = self._finer[tensor]
        codes = np.ldexp(self.raw_unit[tensor], finer)
        zero = np.zeros(len(codes), np.int32)
        self._backend.requantise(tensor, Requantisation(zero, zero + 1, zero, zero + finer))
        bound = CODE * float(codes.max())
        if self.plan.tensors[tensor].activation == "relu6":
            bound = min(bound, 6.0)
        self.worth[tensor] = Worth(codes, np.zeros(len(codes)), bound)

    def _requantise_norm(self, tensor: int, norm: Norm) -> None:
        unit = self.raw_unit[tensor]
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
        self.worth[tensor] = self._norm_worth(tensor, norm)

    def _norm_worth(self, tensor: int, norm: Norm) -> Worth:
        scale, offset = self._affine(norm, self.channels(tensor))
        bound = float((np.abs(scale) * CODE * ONE + np.abs(offset)).max())
        if self.plan.tensors[tensor].activation == "relu6":
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
        mean, deviation = running_moments(norm, self._running)
        return mean / unit, deviation / unit

    def _affine(self, norm: Norm, channels: int) -> tuple[Reals, Reals]:
        scale = self.network.real(norm.weight) if norm.weight else np.ones(channels)
        offset = self.network.real(norm.bias) if norm.bias else np.zeros(channels)
        return scale, offset

    # The output

    def outputs(self) -> NDArray[np.float64]:
        """Return what the model returns for the batch, [n, ...]."""
        return self._output_maps().reshape(self._examples, *self.plan.output_shape)

    def _output_maps(self) -> NDArray[np.float64]:
        """Return the outputs as [n, channels, height, width]."""
        output = self.plan.output
        if self._output_is_raw:
            rows = self._backend.raw_rows(output).astype(np.float64)
            return np.asarray(rows * self.raw_unit[output][:, None, None])
        worth = self.worth[output]
        codes = self._backend.codes(output).astype(np.float64)
        values = codes * worth.factor[:, None, None] + worth.offset[:, None, None]
        activation = self.plan.tensors[output].activation
        if activation != "none":
            values = np.clip(values, 0.0, 6.0 if activation == "relu6" else None)
        return np.asarray(values)

    def loss(self, targets: NDArray[Any]) -> float:
        """Return the plan's loss of the batch; in training, start the backward pass.

        Raises:
            EngineError: The targets are not such as the loss takes, or not as many as the examples.
        """
        check_targets(self.plan, targets, self._examples)
        loss, gradient, unit = loss_gradient(self.plan.loss, self.outputs(), targets)
        if self.mode == "train":
            output = self.plan.output
            shape = self.plan.tensors[output].shape
            self._backend.set_gradient(output, gradient.reshape(-1, *shape))
            self.slopes[output] = Slope.whole(np.full(shape[0], unit))
        return loss

    # Backward

    def backward(self, before: Callable[[int], None] | None = None) -> None:
        """Compute `gradient` for the batch whose loss was taken."""
        self.gradient[:] = 0
        if self._walker is not None:
            self._walker.backward(self, before)
        else:
            self._backward(before)
        self._step += 1

    def _backward(self, before: Callable[[int], None] | None) -> None:
        self._finished.clear()
        self._chains.clear()
        for step in self.schedule.steps:
            if isinstance(step, Finish):
                self._finish(step.tensor)
            elif isinstance(step, Backward):
                if before is not None:
                    before(step.op)
                self._backward_op(step)

    def _finish(self, tensor: int) -> None:
        """Pass a gradient through its activation, and find how it passes through the norm."""
        what, slope = self.plan.tensors[tensor], self.slopes[tensor]
        read = None
        if what.activation != "none":
            read = self.read(tensor, self.worth[tensor].bound / WIDE, WIDE)
        sums, peak = self._backend.finish(tensor, read)
        self._finished.add(tensor)
        slope = self.slopes[tensor] = Slope(slope.unit, peak.astype(np.float64))
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
        zero = np.zeros(self.channels(tensor))
        return self._chains.get(tensor, (zero + 1.0, zero, zero, "none"))

    def passed_bound(self, tensor: int) -> Reals:
        """Return a bound of the passed gradient's magnitude per channel, in real units."""
        (a, b, c, carrier), slope = self._chain(tensor), self.slopes[tensor]
        reach = np.abs(a) * slope.most + np.abs(b) * CARRIED[carrier] + np.abs(c)
        return np.asarray(slope.unit * reach)

    def passed_range(self, tensor: int) -> Reals:
        """Return what no passed gradient exceeds, per channel, in real units.

        Behind a norm that is a bound, a few percent above the largest, for another look at all
        gradients would tell little more.
        """
        bound = self.passed_bound(tensor)
        if self._is_finished(tensor):
            return bound
        unit = np.maximum(bound, LEAST) / WIDE
        return self._backend.passed_peak(tensor, self.chain_in(tensor, unit, WIDE)) * unit

    def _is_finished(self, tensor: int) -> bool:
        if self._walker is not None:
            return self._shared.is_finished(tensor)
        return tensor in self._finished

    def chain_in(
        self,
        tensor: int,
        unit: Reals,
        limit: int,
        factor: Ints | None = None,
        key: int | None = None,
    ) -> Chain:
        """Return how to pass a tensor's gradient, in units of the result."""
        (a, b, c, carrier), slope = self._chain(tensor), self.slopes[tensor]
        a, b, c = (part * slope.unit / unit for part in (a, b, c))
        return chain_constants(a, b, c, carrier, slope.most, limit, factor, key)

    def _backward_op(self, step: Backward) -> None:
        target, given = self.plan.ops[step.op].target, []
        for contribution in step.contributions:
            if contribution.shared:
                self._backend.share_gradient(target, contribution.tensor)
                self.slopes[contribution.tensor] = self.slopes[target]
            else:
                given.append(contribution)
        self._ops[step.op].backward(self, given)
        for contribution in given:
            if contribution.finish:
                self._finish(contribution.tensor)

    def give(self, given: Contribution, new: Slope) -> Mix | None:
        """Note what a source's gradient is worth then; return how to add, if it holds something."""
        if not given.accumulate:
            self.slopes[given.tensor] = new
            return None
        old = self.slopes[given.tensor]
        unit = (old.unit * old.most + new.unit * new.most) / WIDE
        unit = np.maximum(unit, LEAST)
        self.slopes[given.tensor] = Slope.whole(unit)
        return mix_constants(old.unit / unit, new.unit / unit)

    # Parts

    def key(self, number: int) -> int:
        """See `Units.key`."""
        return derive_key(self.seed, self._step, number)

    def scaled_gradient(self, ranges: Reals, bits: int) -> tuple[Reals, float]:
        """See `Units.scaled_gradient`."""
        return self._rule(ranges, bits)

    def channels(self, tensor: int) -> int:
        """See `Units.channels`."""
        return self.plan.tensors[tensor].shape[0]

    def trains(self, name: str) -> bool:
        """See `Units.trains`."""
        return _is_in(self.trained, name)

    def _count(self, tensor: int) -> int:
        """Return the number of values of one channel in the batch."""
        return self._examples * math.prod(self.plan.tensors[tensor].shape[1:])


def _is_in(names: frozenset[str] | None, name: str) -> bool:
    """Say whether a name is one of those; None: of all."""
    return names is None or name in names


def _centre(mean: Reals) -> Reals:
    return np.clip(np.rint(mean), -WIDE, WIDE)


def _rectified(mean: Reals, deviation: Reals) -> Reals:
    """Return the mean square of max(0, x) for normal x."""
    deviation = np.maximum(deviation, 1e-12)
    z = mean / deviation
    below = first_bits(np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z]))
    density = first_bits(np.array([math.exp(-value * value / 2) for value in z]))
    density = density / math.sqrt(2 * math.pi)
    return np.asarray((mean**2 + deviation**2) * below + mean * deviation * density)
