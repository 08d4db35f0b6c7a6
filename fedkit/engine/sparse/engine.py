"""The sparse engine: training that touches kept weights only, without torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import EngineError
from fedkit.core.heap import return_free_blocks
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
from fedkit.engine.kernels import native
from fedkit.engine.kernels.network import Network, NormState
from fedkit.engine.ops.registry import check_sparse
from fedkit.engine.plan.conv import shared_parameters
from fedkit.engine.plan.plan import verify
from fedkit.engine.plan.structure import Plan
from fedkit.engine.planned import PlannedEngine
from fedkit.engine.running import BatchStatistics, RunningStatistics
from fedkit.engine.sparse.float_op import Mode
from fedkit.engine.sparse.output_loss import loss_of_outputs
from fedkit.engine.sparse.program import SparseProgram
from fedkit.engine.sparse.recomputing import RecomputingProgram, heads_of
from fedkit.engine.sparse.stored import STORED_BITS
from fedkit.sparse.packed import packed
from fedkit.sparse.state import Masks, ModelState, Weights, same_masks
from fedkit.sparse.topk import Entries, StreamingTopK
from fedkit.stats.moments import Moments, NormMoments
from fedkit.tasks.task import Examples

EVALUATION_BATCH = 64
"""Most examples that are evaluated at a time."""

_EVALUATION_BYTES = 4 << 20
"""Activations that an evaluation may take for more examples than it must take together."""

_TILE = 1 << 14


class SparseEngine(PlannedEngine):
    """Implements `fedkit.engine.base.Engine` over a plan and the compiled kernels.

    It keeps the network of the masks it saw last, so that equal masks cost nothing.

    Args:
        plan: The model.
        initial: What `initial_state` returns; None on a device.
        simd: Instruction set, one of `native.SIMD`; "" is the fastest here.
        threads: Threads that share every step; results are the same for any number.
        stored_bits: Bits of what the backward pass reads of the forward pass, see `stored.py`.
        memory: Most bytes that a step may take, as `SparseProgram.memory` counts them: where that
            needs it, fewer bits than `stored_bits` are stored, and then the first ops run again
            for a tile of examples at a time, with fewer examples of a tile at last; fewer examples
            are evaluated at a time. None: what it needs.

    Raises:
        EngineError: The kernels are missing or do not run here, or the plan has an op that this
            engine lacks.
        PlanError: The plan breaks a rule of `verify`.
    """

    def __init__(
        self,
        plan: Plan,
        initial: ModelState | None = None,
        simd: str = "",
        threads: int = 1,
        stored_bits: int = 32,
        memory: int | None = None,
    ) -> None:
        if stored_bits not in STORED_BITS:
            raise EngineError(f"values are stored in 32, 16, 8 or 4 bits, not in {stored_bits}")
        verify(plan)
        check_sparse(plan)
        self.plan, self.layout = plan, plan.layout
        self.kernels = native.load_kernels(simd)
        self._initial, self._threads = initial, threads
        self.stored_bits, self.memory = stored_bits, memory
        self._shared = shared_parameters(plan)
        self._network: Network | None = None
        self._programs: dict[tuple[Mode, frozenset[str] | None], SparseProgram] = {}
        self._planned: dict[tuple[Mode, frozenset[str] | None], int] = {}

    def replica(self) -> SparseEngine:
        """See `Replicable.replica`."""
        replica = copy.copy(self)
        replica._network, replica._programs = None, {}
        return replica

    def rest(self) -> None:
        """See `Resting.rest`."""
        self._programs.clear()
        self._network = None

    def within(self, memory: int | None) -> SparseEngine:
        """Return a replica whose steps may take so many bytes; None: what they need."""
        replica = self.replica()
        replica.memory = memory
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
        """See `Engine.train`. The same steps as the torch engine's, on kept weights only."""
        largest = min(how.batch_size, len(examples))
        # Who adds up all gradients needs them all.
        computed = how.trained if gradient_sums is None else None
        program = self.program(state, "train", largest, computed)
        network, program.moved = program.network, how.trained
        program.velocity[:] = 0
        program.restart(seed)
        batches = TrainingBatches(examples, how, seed)
        statistics, loss = RunningStatistics(self.plan.stats), 0.0
        add = None if gradient_sums is None else self._adder(program, gradient_sums)
        for _ in range(how.epochs):
            losses = []
            statistics.restart()
            for batch in batches.epoch():
                program.forward(batch.inputs, batch.order)
                losses.append(check_loss(program.loss(batch.targets)))
                program.backward(before=add)
                program.step(how.lr, how.momentum, how.weight_decay)
                statistics.add(_batch_statistics(network, len(batch.order)))
            loss = sum(losses) / len(losses)
        weights = network.parameters.weights()
        return ModelState(weights, statistics.mean() or state.stats, state.masks), loss

    def norm_moments(
        self, state: ModelState, examples: Examples, frozen: bool = False
    ) -> NormMoments:
        """See `Engine.norm_moments`."""
        collected = self.moments_of_norms()
        largest = min(STATISTICS_BATCH, len(examples))
        program = self.program(state, "statistics", largest)
        program.frozen = state if frozen else None
        for order in even_batches(np.arange(len(examples)), STATISTICS_BATCH):
            program.forward(examples.inputs, order)
            for norm, count in _counts(program.network, len(order)):
                square = norm.variance(count, unbiased=False) * count
                part = Moments(count, norm.center.copy(), square)
                collected[norm.norm.name].append(part)
        program.frozen = None
        return merge_batches(collected, self.absolute_norms, frozen)

    def loss(self, state: ModelState, examples: Examples) -> float:
        """See `Engine.loss`."""
        mean = MeanLoss(self.plan.loss)
        for order, outputs in self._evaluated(state, examples.inputs):
            targets = examples.targets[order]
            mean.add(loss_of_outputs(self.plan, self.kernels, outputs, targets), targets)
        return mean.value

    def outputs(self, state: ModelState, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Engine.outputs`."""
        return np.concatenate([*self.output_batches(state, inputs)])

    def output_batches(
        self, state: ModelState, inputs: NDArray[np.float32]
    ) -> Iterator[NDArray[np.float32]]:
        """See `Engine.output_batches`."""
        for _, outputs in self._evaluated(state, inputs):
            yield outputs

    def top_gradients(
        self, state: ModelState, examples: Examples, amounts: Mapping[str, int]
    ) -> dict[str, Entries]:
        """See `Engine.top_gradients`. One batch of all examples.

        The gradients of pruned weights exist a tile at a time, and go through a buffer of
        `amounts[layer]` entries.
        """
        if unknown := sorted(set(amounts) - set(self.layout.prunable)):
            raise EngineError(
                f"{', '.join(unknown)} cannot be pruned; gradients are ranked within "
                f"{', '.join(self.layout.prunable)}"
            )
        masks, found = packed(state.masks), dict[str, Entries]()
        sums: GradientSums = {}  # of layers that are called several times

        def collect(program: SparseProgram, number: int, name: str) -> None:
            if name in self._shared and name in amounts:
                self._add(program, number, name, sums)
            elif name in amounts:
                tiles = self._tiles(program, number, name)
                found[name] = _top(tiles, masks.positions(name), amounts[name])

        self._visit_layers(state, examples, collect)
        for name, gradient in sums.items():
            found[name] = _top([gradient], masks.positions(name), amounts[name])
        return {name: found[name] for name in amounts}

    def gradients(self, state: ModelState, examples: Examples) -> Weights:
        """See `Engine.gradients`."""
        found: GradientSums = {}
        self._visit_layers(state, examples, partial(self._add, sums=found))
        return {name: found[name] for name in self.layout.prunable}

    def _visit_layers(
        self,
        state: ModelState,
        examples: Examples,
        visit: Callable[[SparseProgram, int, str], None],
    ) -> None:
        """Run one batch of all examples; show each layer once its full gradient can be taken.

        Args:
            state: The model.
            examples: The batch.
            visit: Called with the program, the number of the layer's op and its weight's name.
        """
        program = self.program(state, "train", len(examples))
        program.forward(examples.inputs, np.arange(len(examples)))
        check_loss(program.loss(examples.targets[:]))
        program.backward(before=_at_layers(program, visit))

    def _adder(self, program: SparseProgram, sums: GradientSums) -> Callable[[int], None]:
        """Return what adds the gradients of all weights to `sums`, layer by layer."""
        return _at_layers(program, partial(self._add, sums=sums))

    def _add(self, program: SparseProgram, number: int, name: str, sums: GradientSums) -> None:
        """Add the gradients of all weights of a layer, which may be called several times."""
        gradient = self._full_gradient(program, number, name)
        if name in sums:
            sums[name] += gradient
        else:
            sums[name] = gradient

    def _tiles(
        self, program: SparseProgram, number: int, name: str
    ) -> Iterable[NDArray[np.float32]]:
        """Return the gradients of all entries of a weight, in order, in parts."""
        if program.network.parameters.order(name) is not None:
            return [self._full_gradient(program, number, name)]
        taps = program.network.layers[number].geometry.full_taps
        return program.full_gradient(number, rows=max(1, _TILE // taps))

    def _full_gradient(self, program: SparseProgram, number: int, name: str) -> NDArray[np.float32]:
        network = program.network
        # All rows at once: the inputs are packed anew for every tile.
        (whole,) = program.full_gradient(number, rows=network.layers[number].geometry.target[0])
        return np.asarray(network.parameters.whole(name, whole), np.float32)

    def program(
        self, state: ModelState, mode: Mode, batch: int, trained: frozenset[str] | None = None
    ) -> SparseProgram:
        """Return a program for batches of up to `batch` examples, loaded with `state`.

        Args:
            state: The model.
            mode: What it is to do.
            batch: Most examples.
            trained: Names of the weights whose gradients are wanted; None: of all.

        Raises:
            EngineError: The state does not fit the plan or holds a NaN, or the batch is empty or
                needs more memory than there may be.
        """
        if batch < 1:
            raise EngineError(f"a batch of {batch} examples holds nothing to compute with")
        # What is replaced goes first: on a device the memory of two would be held at once.
        if self._network is None or not same_masks(self._network.masks, state.masks):
            self._programs.clear()
            self._network = None
        key = mode, trained
        if key not in self._programs or self._planned[key] < batch:
            self._programs.clear()
            made = self._within_memory(state.masks, mode, batch, trained)
            self._network, self._programs[key] = made.network, made
            self._planned = {key: batch}
            return_free_blocks()  # before a step touches its arena
        program = self._programs[key]
        program.network.load(state)
        return program

    def _within_memory(
        self, masks: Masks, mode: Mode, batch: int, trained: frozenset[str] | None
    ) -> SparseProgram:
        """Return a program that takes no more memory than it may."""
        for kernels in self._tilings():
            if self._network is None or self._network.kernels is not kernels:
                self._network = None
                self._network = Network(self.plan, masks, kernels)
            made = self._smallest(self._network, mode, batch, trained)
            if self._fits(made):
                return made
        fewer = made
        while not self._fits(fewer) and fewer.batch > 1 and mode != "evaluate":
            fewer = self._smallest(made.network, mode, fewer.batch // 2, trained)
        hint = f"; a batch of {fewer.batch} fits" if self._fits(fewer) else ""
        raise self._too_much(made, hint)

    def _tilings(self) -> Iterator[native.Kernels]:
        """Yield the engine's kernels and, where memory is bounded, those of smaller tiles."""
        yield self.kernels
        lanes = self.kernels.lanes
        for simd in native.available() if self.memory is not None else ():
            kernels = native.load_kernels(simd)
            if kernels.lanes < lanes:
                lanes = kernels.lanes
                yield kernels

    def _too_much(self, made: SparseProgram, hint: str) -> EngineError:
        assert self.memory is not None
        advice = "give more (--memory)"
        if made.mode == "train":
            stored = f", with all that is stored in {made.stored_bits} bits"
            advice += ", or fewer examples (--batch-size, --adjust-examples)"
        else:
            stored = " to evaluate" if made.mode == "evaluate" else " for statistics of norms"
        return EngineError(
            f"a batch of {made.batch} needs {made.memory.peak / 1e6:.3g} MB{stored}; memory is "
            f"{self.memory / 1e6:.3g} MB{hint}: {advice}"
        )

    def _smallest(
        self, network: Network, mode: Mode, batch: int, trained: frozenset[str] | None
    ) -> SparseProgram:
        """Return the fastest program that memory allows, or that of the least."""
        if mode == "evaluate":
            return self._evaluating(network, batch)
        bounded = self.memory is not None
        choices = [bits for bits in STORED_BITS if bits <= self.stored_bits]
        choices = choices if bounded and mode == "train" else choices[:1]
        how = batch, self._threads, trained
        for bits in choices:
            made = SparseProgram(network, mode, *how, bits)
            if self._fits(made):
                return made
        for head in heads_of(network) if bounded else ():
            again = RecomputingProgram(network, mode, head, *how, choices[-1])
            if self._fits(again):
                return self._widest(again, choices)
            made = min(made, again, key=_peak)
        return made

    def _widest(self, program: RecomputingProgram, choices: Iterable[int]) -> RecomputingProgram:
        """Return a program of the same head that stores as many bits as memory allows."""
        wider = (program.storing(bits) for bits in choices if bits > program.stored_bits)
        return next(filter(self._fits, wider), program)

    def _evaluating(self, network: Network, batch: int) -> SparseProgram:
        """Return a program of as few examples as keep all threads busy, or more in a cache.

        Outputs do not depend on how many are computed together.
        """
        for tiles in (self._threads, 1):
            least = tiles * network.kernels.lanes
            made = SparseProgram(network, "evaluate", min(batch, least), self._threads)
            if self._fits(made):
                break
        many = min(batch, least * (_EVALUATION_BYTES // max(1, made.memory.activations)))
        if many > made.batch:
            more = SparseProgram(network, "evaluate", many, self._threads)
            return more if self._fits(more) else made
        return made

    def _fits(self, program: SparseProgram) -> bool:
        return self.memory is None or program.memory.peak <= self.memory

    def _evaluated(
        self, state: ModelState, inputs: NDArray[np.float32]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield which examples a batch has, and what the model returns for them."""
        program = self.program(state, "evaluate", min(EVALUATION_BATCH, len(inputs)))
        for norm in program.network.norms.values():
            norm.use_running(state)
        for order in even_batches(np.arange(len(inputs)), EVALUATION_BATCH):
            begins = range(0, len(order), program.batch)
            parts = (order[begin : begin + program.batch] for begin in begins)
            yield order, np.concatenate([_outputs(program, inputs, part) for part in parts])


def _outputs(
    program: SparseProgram, inputs: NDArray[np.float32], order: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return what a model that evaluates returns, whose examples do not know of each other."""
    # Whole tiles take no longer, and what is always as many needs no new calls.
    whole = min(-len(order) % program.kernels.lanes, program.batch - len(order))
    program.forward(inputs, np.pad(order, (0, whole), "edge"))
    return program.outputs()[: len(order)]


def _peak(program: SparseProgram) -> int:
    return program.memory.peak


def _batch_statistics(network: Network, examples: int) -> BatchStatistics:
    for norm, count in _counts(network, examples):
        yield norm.norm, norm.center, norm.variance(count, unbiased=True)


def _counts(network: Network, examples: int) -> Iterator[tuple[NormState, int]]:
    """Yield each norm with the number of values behind one channel's statistics."""
    for index, norm in network.norms.items():
        _, height, width = network.plan.tensors[index].shape
        yield norm, examples * height * width


def _top(tiles: Iterable[NDArray[np.float32]], kept: NDArray[np.int64], amount: int) -> Entries:
    """Return the largest gradients of pruned weights.

    Args:
        tiles: Gradients of all weights, in order.
        kept: Where the kept ones are.
        amount: How many to return.
    """
    top, start = StreamingTopK(amount), 0
    for tile in tiles:
        inside = kept[slice(*np.searchsorted(kept, (start, start + tile.size)))]
        pruned = np.ones(tile.size, np.bool_)
        pruned[inside - start] = False
        positions = np.flatnonzero(pruned)
        values = tile.reshape(-1)[positions]
        positions += start
        top.push(positions, values)
        start += tile.size
    return top.entries()


def _at_layers(
    program: SparseProgram, visit: Callable[[SparseProgram, int, str], None]
) -> Callable[[int], None]:
    """Return a `before` of the backward pass that visits the ops which have a prunable weight."""

    def before(number: int) -> None:
        layer = program.network.layers.get(number)
        if layer is not None:
            visit(program, number, layer.geometry.op.weight)

    return before
