"""The integer engine: devices train in integers of 8 bits and below, without torch."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import EngineError
from fedkit.engine.base import (
    STATISTICS_BATCH,
    GradientSums,
    LocalTraining,
    MeanLoss,
    TrainingBatches,
    check_loss,
    even_batches,
    merge_batches,
)
from fedkit.engine.integer.backend import Backend
from fedkit.engine.integer.constants import CODE
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.integer.integer_network import IntegerNetwork
from fedkit.engine.integer.native_backend import NativeBackend
from fedkit.engine.integer.numpy_backend import NumpyBackend
from fedkit.engine.integer.optimiser import Sgd
from fedkit.engine.integer.program import IntegerProgram, Mode
from fedkit.engine.kernels import native
from fedkit.engine.ops.registry import check_integer
from fedkit.engine.plan.checks import check_inputs, check_tokens
from fedkit.engine.plan.conv import arranged
from fedkit.engine.plan.plan import verify
from fedkit.engine.plan.structure import Plan
from fedkit.engine.planned import PlannedEngine
from fedkit.engine.running import BatchStatistics, RunningStatistics
from fedkit.sparse.kept import joined, kept_weights
from fedkit.sparse.packed import packed
from fedkit.sparse.state import Masks, ModelState, Weights, same_masks
from fedkit.sparse.topk import Entries, largest
from fedkit.stats.moments import Moments, NormMoments
from fedkit.tasks.lazy_array import LazyArray, as_array, pieces
from fedkit.tasks.task import Examples

_EVALUATION_BATCH = 64
_NUMPY_LANES = 16
_LAST_BATCHES = 8


class IntegerEngine(PlannedEngine):
    """Implements `fedkit.engine.base.Engine` in integers.

    Args:
        plan: The model.
        initial: What `initial_state` returns; None on a device.
        bits: Of weights, activations and gradients, 2 to 8; layers at the edge have 8.
        gradient: How gradients are scaled, a row of `fedkit.engine.integer.gradients.RULES`.
        backend: "native", "numpy", or "": the kernels where they are.
        simd: Instruction set of the kernels; "" is the fastest here.

    Raises:
        EngineError: The bits, the rule or the backend do not exist, or the kernels are wanted and
            missing, or the plan has an op that this engine lacks.
        PlanError: The plan breaks a rule of `verify`.
    """

    def __init__(
        self,
        plan: Plan,
        initial: ModelState | None = None,
        bits: int = 8,
        gradient: str = "shiftquant",
        backend: str = "",
        simd: str = "",
    ) -> None:
        verify(plan)
        check_integer(plan)
        if not 2 <= bits <= 8:
            raise EngineError(f"bits is {bits}; integer training takes 2 to 8: choose among them")
        if gradient not in RULES:
            raise EngineError(f"gradient is {gradient!r}; choose one of {', '.join(RULES)}")
        if backend not in ("", "native", "numpy"):
            raise EngineError(f"backend is {backend!r}; choose native, numpy, or '' for the faster")
        self.plan, self.layout, self.bits, self.gradient = plan, plan.layout, bits, gradient
        wanted = backend or ("native" if native.available() else "numpy")
        self.kernels = native.load_kernels(simd) if wanted == "native" else None
        self._initial = initial
        self._network: IntegerNetwork | None = None
        self._programs: dict[tuple[Mode, int, frozenset[str] | None], IntegerProgram] = {}

    @property
    def lanes(self) -> int:
        """Examples of a tile."""
        return _NUMPY_LANES if self.kernels is None else int(self.kernels.int_lanes())

    def replica(self) -> IntegerEngine:
        """See `Replicable.replica`."""
        replica = copy.copy(self)
        replica._network, replica._programs = None, {}
        return replica

    def initial_state(self) -> ModelState:
        """Return the state the engine was made with.

        Raises:
            EngineError: It was made from a plan alone.
        """
        if self._initial is None:
            raise EngineError(
                "a plan holds no weights, so there is no initial state; the server has it"
            )
        return self._initial

    def train(
        self,
        state: ModelState,
        examples: Examples,
        how: LocalTraining,
        seed: int,
        gradient_sums: GradientSums | None = None,
    ) -> tuple[ModelState, float]:
        """See `Engine.train`. The same order of examples as in the other engines."""
        largest = min(how.batch_size, len(examples))
        if gradient_sums is None:
            program = self.program(state, "train", largest, how.trained)
        else:
            program = self._full_program(state, largest)
        network, loss = program.network, 0.0
        program.restart(seed)
        optimiser = Sgd(network, self.kernels, how.momentum, how.weight_decay, seed, how.trained)
        inputs, scale = self._quantized(examples.inputs)
        encode = functools.partial(input_codes, scale=scale)
        batches = TrainingBatches(examples, how, seed, inputs, encode)
        statistics = RunningStatistics(self.plan.stats)
        for _ in range(how.epochs):
            losses = []
            statistics.restart()
            for batch in batches.epoch():
                program.forward(batch.inputs, scale, batch.order)
                losses.append(check_loss(program.loss(batch.targets)))
                program.backward()
                if gradient_sums is not None:
                    _add_gradients(program, self.layout.prunable, gradient_sums)
                    _mask_gradient(program, state.masks)
                optimiser.step(program.gradient, program.gradient_units, how.lr)
                statistics.add(batch_statistics(program, len(batch.order)))
            loss = sum(losses) / len(losses)
        self._look_again(program, statistics, inputs, scale, how.batch_size)
        # What is not trained comes back as it came, not as the integers have it.
        weights = network.state().under(packed(state.masks))
        if how.trained is not None:
            weights = joined(kept_weights(state.weights, state.masks), weights.only(how.trained))
        return ModelState(weights, statistics.mean() or state.stats, state.masks), loss

    def _look_again(
        self,
        program: IntegerProgram,
        statistics: RunningStatistics,
        inputs: NDArray[np.int8],
        scale: float,
        batch_size: int,
    ) -> None:
        """Take the statistics under the final weights, on a few batches.

        Codes of few bits move in steps, and with each the statistics of what they make; a mean over
        an epoch fits no weights, the last ones least.
        """
        if not program.network.norms:
            return
        statistics.restart()
        for order in even_batches(np.arange(len(inputs)), batch_size)[:_LAST_BATCHES]:
            program.forward(inputs, scale, order)
            statistics.add(batch_statistics(program, len(order)))

    def norm_moments(
        self, state: ModelState, examples: Examples, frozen: bool = False
    ) -> NormMoments:
        """See `Engine.norm_moments`. Each device rounds its inputs by a scale of its own."""
        collected = self.moments_of_norms()
        program = self.program(state, "statistics", min(STATISTICS_BATCH, len(examples)))
        program.use_running(state if frozen else None)
        inputs, scale = self._quantized(examples.inputs)
        for order in even_batches(np.arange(len(examples)), STATISTICS_BATCH):
            program.forward(inputs, scale, order)
            for index, norm in program.network.norms.items():
                count, seen = self._count(index, len(order)), program.statistics[index]
                part = Moments(count, seen.mean, seen.variance * count)
                collected[norm.name].append(part)
        program.use_running(None)
        return merge_batches(collected, self.absolute_norms, frozen)

    def loss(self, state: ModelState, examples: Examples) -> float:
        """See `Engine.loss`."""
        program, (inputs, scale) = self._evaluation(state, examples.inputs)
        mean = MeanLoss(self.plan.loss)
        for order in even_batches(np.arange(len(examples)), _EVALUATION_BATCH):
            program.forward(inputs, scale, order)
            targets = examples.targets[order]
            mean.add(program.loss(targets), targets)
        return mean.value

    def outputs(self, state: ModelState, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.outputs`."""
        return np.concatenate([*self.output_batches(state, inputs)])

    def output_batches(
        self, state: ModelState, inputs: NDArray[np.float32]
    ) -> Iterator[NDArray[np.float32]]:
        """See `Engine.output_batches`."""
        program, (codes, scale) = self._evaluation(state, inputs)
        for order in even_batches(np.arange(len(inputs)), _EVALUATION_BATCH):
            program.forward(codes, scale, order)
            yield program.outputs().astype(np.float32)

    def top_gradients(
        self, state: ModelState, examples: Examples, amounts: Mapping[str, int]
    ) -> dict[str, Entries]:
        """See `Engine.top_gradients`. One batch of all examples."""
        if unknown := sorted(set(amounts) - set(self.layout.prunable)):
            raise EngineError(
                f"{', '.join(unknown)} cannot be pruned; gradients are ranked within "
                f"{', '.join(self.layout.prunable)}"
            )
        found, gradients = dict[str, Entries](), self.gradients(state, examples)
        for name, amount in amounts.items():
            values = gradients[name].reshape(-1)
            pruned = np.flatnonzero(~state.masks[name])
            chosen = pruned[largest(values[pruned], amount)]
            found[name] = Entries(chosen, values[chosen])
        return found

    def gradients(self, state: ModelState, examples: Examples) -> Weights:
        """See `Engine.gradients`."""
        sums: GradientSums = {}
        program = self._full_program(state, len(examples))
        program.restart(0)
        inputs, scale = self._quantized(examples.inputs)
        program.forward(inputs, scale, np.arange(len(examples)))
        check_loss(program.loss(examples.targets[:]))
        program.backward()
        _add_gradients(program, self.layout.prunable, sums)
        return sums

    def _full_program(self, state: ModelState, batch: int) -> IntegerProgram:
        """Return a program that computes the gradients of pruned weights too, which are 0."""
        everything = {name: np.ones_like(mask) for name, mask in state.masks.items()}
        return self.program(ModelState(state.weights, state.stats, everything), "train", batch)

    def program(
        self, state: ModelState, mode: Mode, batch: int, trained: frozenset[str] | None = None
    ) -> IntegerProgram:
        """Return a program for batches of up to `batch` examples, loaded with `state`.

        Args:
            state: The model.
            mode: What it is to do.
            batch: Most examples.
            trained: Names of the weights whose gradients are wanted; None: of all.

        Raises:
            EngineError: The state does not fit the plan or holds a NaN, or the batch is empty.
        """
        if batch < 1:
            raise EngineError(f"a batch of {batch} examples holds nothing to compute with")
        # What is replaced goes first: on a device the memory of two would be held at once.
        if self._network is None or not same_masks(self._network.masks, state.masks):
            self._programs.clear()
            self._network = None
            self._network = IntegerNetwork(self.plan, state.masks, self.bits, self.lanes)
        key = mode, batch, trained
        if key not in self._programs:
            self._programs.clear()
            self._programs[key] = self.program_of(self._network, *key)
        self._network.load(state)
        return self._programs[key]

    def program_of(
        self,
        network: IntegerNetwork,
        mode: Mode,
        batch: int,
        trained: frozenset[str] | None = None,
    ) -> IntegerProgram:
        """Return a new program for batches of up to `batch` examples on a network as it is."""

        def backend(program: IntegerProgram) -> Backend:
            if self.kernels is None:
                return NumpyBackend(network)
            return NativeBackend(network, self.kernels, program.schedule, batch)

        return IntegerProgram(network, backend, mode, batch, self.gradient, trained)

    def _evaluation(
        self, state: ModelState, inputs: NDArray[np.float32]
    ) -> tuple[IntegerProgram, tuple[NDArray[np.int8], float]]:
        program = self.program(state, "evaluate", min(_EVALUATION_BATCH, len(inputs)))
        program.use_running(state)
        return program, self._quantized(inputs)

    def _quantized(self, inputs: NDArray[np.float32]) -> tuple[NDArray[np.int8], float]:
        tokens = self.plan.tokens
        check_inputs(self.plan, inputs, np.int64 if tokens else np.float32)
        if tokens:
            check_tokens(tokens, inputs)
        return quantize_inputs(inputs)

    def _count(self, tensor: int, examples: int) -> int:
        return examples * math.prod(self.plan.tensors[tensor].shape[1:])


def _add_gradients(program: IntegerProgram, names: Sequence[str], sums: GradientSums) -> None:
    """Add a batch's gradients, in real units, of a network that has all weights."""
    network = program.network
    ends = {layer.geometry.op.weight: n for n, layer in network.layers.items()}
    for name in names:
        counts = np.diff(network.row_ends(ends[name]), prepend=0)
        unit = np.repeat(program.gradient_units[name], counts)
        values = network.part(name, program.gradient) * unit
        gradient = network.parameters.dense(name, values).astype(np.float32)
        sums[name] = sums[name] + gradient if name in sums else gradient


def _mask_gradient(program: IntegerProgram, masks: Masks) -> None:
    for name, mask in masks.items():
        network = program.network
        kept = arranged(mask, network.parameters.order(name))
        inside = network.parameters.kept.get(name, slice(None))
        network.part(name, program.gradient)[:] *= kept[inside]


def quantize_inputs(inputs: NDArray[np.float32]) -> tuple[NDArray[np.int8], float]:
    """Return inputs as int8, and what 1 stands for: the least power of two that holds them all.

    Raises:
        EngineError: An input is NaN or infinite.
    """
    largest = max((float(np.abs(part).max(initial=0.0)) for _, part in pieces(inputs)), default=0.0)
    if not math.isfinite(largest):
        raise EngineError("the inputs hold NaN or infinite values; clean the data set first")
    fraction, exponent = math.frexp(largest / CODE)
    point = (fraction == 0.5) - exponent if largest else 0
    scale = math.ldexp(1.0, -point)
    encode = functools.partial(input_codes, scale=scale)
    if isinstance(inputs, LazyArray):
        return as_array(inputs.map(encode)), scale
    return encode(inputs), scale


def input_codes(inputs: NDArray[np.float32], scale: float) -> NDArray[np.int8]:
    """Return inputs in steps of `scale`, a power of two; what is beyond the codes is cut off."""
    steps = np.rint(np.ldexp(inputs, 1 - math.frexp(scale)[1]))
    codes: NDArray[np.int8] = np.clip(steps, -CODE, CODE).astype(np.int8)
    return codes


def batch_statistics(program: IntegerProgram, examples: int) -> BatchStatistics:
    """Yield each norm with mean and unbiased variance of the batch that ran last."""
    for index, norm in program.network.norms.items():
        seen = program.statistics[index]
        count = examples * math.prod(program.network.plan.tensors[index].shape[1:])
        unbiased = 1.0 if norm.kind == "l1-batch" else count / max(count - 1, 1)
        yield norm, seen.mean, seen.variance * unbiased
