"""A network bound to memory: every step of forward and backward pass as a call of a kernel.

All tensors lie in one arena whose size is known when the program is made. Nothing is allocated
while it runs.
"""

from __future__ import annotations

import functools
import itertools
import math
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from ctypes import byref, c_float, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import derive_key
from fedkit.engine.kernels import native, structs
from fedkit.engine.kernels.network import Network
from fedkit.engine.kernels.structs import pointer
from fedkit.engine.ops.registry import float_op
from fedkit.engine.plan.checks import (
    check_inputs,
    check_order,
    check_statistics,
    check_targets,
    check_tokens,
)
from fedkit.engine.plan.execution import (
    Backward,
    Finish,
    Forward,
    Key,
    Narrow,
    Schedule,
    Step,
    Widen,
    finished_by,
    forward_schedule,
    keeping_argmax,
    narrowed,
    overwriting,
    place,
    touched,
    training_schedule,
)
from fedkit.engine.plan.structure import StoredTensor
from fedkit.engine.sparse.float_op import (
    Call,
    FloatOp,
    Floats,
    KernelCall,
    Mode,
    NumpyFloatOp,
    SummedVector,
)
from fedkit.engine.sparse.one_call import Team, Walk
from fedkit.engine.sparse.output_loss import has_kernel, in_lanes, kernel_loss
from fedkit.engine.sparse.stored import StoredValues, saves, stored_floats
from fedkit.sparse.state import ModelState
from fedkit.tasks.lazy_array import loaded

_LINE = 16
_HUGE = 1 << 19


@dataclass(frozen=True)
class Memory:
    """Bytes a program needs, by purpose; their sum is its peak.

    Attributes:
        activations: Values and gradients of all tensors, and where maxima were.
        weights: Kept weights and all other parameters.
        gradients: Their gradients.
        optimiser: Their momentum.
        indices: Where the kept weights and the pixels are.
        scratch: Padded planes of one part of the batch and gradients of one thread, per thread;
            sums; means and deviations of layer norms; the weights of one dense layer in a second
            order.
    """

    activations: int
    weights: int
    gradients: int
    optimiser: int
    indices: int
    scratch: int

    @property
    def peak(self) -> int:
        """Bytes in all."""
        return sum(vars(self).values())


class SparseProgram:
    """Runs one network on batches of up to `batch` examples.

    Args:
        network: The model and its weights.
        mode: What it is to do.
        batch: Most examples of one batch.
        threads: Threads that share each step; the results are the same for any number.
        trained: Names of the weights whose gradients are wanted; None: of all.
        stored_bits: Bits of what the backward pass reads of the forward pass: 32, 16, 8 or 4.

    Attributes:
        moved: Names of the weights that a step moves; None: all. At first `trained`.
        frozen: In mode "statistics", the state by whose running statistics norms normalise, while
            the moments of what they normalise are taken; None: by those of the batch.
    """

    def __init__(
        self,
        network: Network,
        mode: Mode,
        batch: int,
        threads: int = 1,
        trained: frozenset[str] | None = None,
        stored_bits: int = 32,
    ) -> None:
        self.trained = self.moved = trained
        self.stored_bits = stored_bits
        self.network, self.mode, self.batch, self.threads = network, mode, batch, threads
        self.plan, self.kernels = network.plan, network.kernels
        self._tokens = network.plan.tokens
        self._examples = 0
        self.frozen: ModelState | None = None
        self.schedule = self._scheduled()
        self._allocate()
        self._bind()
        self.restart(0)
        self.memory = self._account()

    # Memory

    def _scheduled(self) -> Schedule:
        """Return what is done in which order."""
        plan = self.plan
        schedule = forward_schedule(plan)
        if self.mode == "train":
            schedule = keeping_argmax(plan, training_schedule(plan, self.trained, self._apart()))
            if self.stored_bits < 32:
                schedule = narrowed(plan, schedule, self._narrow())
        return overwriting(plan, schedule, self._overwriting())

    def _apart(self) -> Container[int]:
        """Return the tensors whose gradients share no memory with those of their sources."""
        return ()

    def _overwriting(self) -> frozenset[int]:
        ops = enumerate(self.plan.ops)
        return frozenset(n for n, op in ops if float_op(op).overwrites(self.network, n))

    def _narrow(self) -> frozenset[int]:
        """Return the tensors that are worth to be stored in few bits.

        Not the output, which the loss reads, not what must be what it was, and not what an op in
        numpy finds where it was.
        """
        keep = {self.plan.output}
        for op in self.plan.ops:
            if op.needs_exact or issubclass(float_op(op), NumpyFloatOp):
                keep |= {op.target, *op.sources}
        planes = (math.prod(tensor.shape[1:]) for tensor in self.plan.tensors)
        # A plane at a time: what is stored must not depend on how large batches may be.
        worth = (
            index
            for index, plane in enumerate(planes)
            if saves(plane * self.kernels.lanes, self.stored_bits)
        )
        return frozenset(worth) - keep

    def _size(self, key: Key) -> int:
        """Return what has to be placed, in float32."""
        kind, tensor = key
        channels, height, width = self.plan.tensors[tensor].shape
        planes, pixels, lanes = self._held(tensor) * channels, height * width, self.kernels.lanes
        if kind == "argmax":
            return _line(math.ceil(planes * pixels * lanes / 4))
        if kind != "code":
            return _line(planes * pixels * lanes)
        return _line(stored_floats(planes, pixels, lanes, self.stored_bits))

    def _held(self, tensor: int) -> int:
        """Return how many tiles of a tensor there are at a time."""
        return self.most_tiles

    def _allocate(self) -> None:
        tiles = self.most_tiles
        self._places, self._tensor_floats = self._placed()
        scratch = _line(self._scratch_floats())
        # One block: large enough, it lies in huge pages, which the scratch needs most. Not where
        # memory is short, as the last page is larger than what is planned of it.
        size = self._tensor_floats + self.threads * scratch
        self._arena = _aligned(size, _LINE if self.repeated or size < _HUGE else _HUGE)
        self._scratch = self._arena[self._tensor_floats :].reshape(self.threads, scratch)
        count = len(self.network.parameters.values) if self.mode == "train" else 0
        self.gradient = np.zeros(count, np.float32)
        self.velocity = np.zeros(count, np.float32)
        adding = self.threads if self.mode == "train" and self.threads > 1 else 0
        self.partial = np.zeros((adding, self._summed() if adding else 0), np.float32)
        layers = self.network.layers.values() if self.mode == "train" else ()
        dense = max((layer.geometry.weights for layer in layers if layer.dense), default=0)
        self.transposed = np.empty(dense, np.float32)
        channels = max(tensor.shape[0] for tensor in self.plan.tensors)
        self._sums = np.zeros((tiles, channels, 2), np.float64)
        self._team = Team(self.kernels, self.threads, self._scratch, self.partial)

    def _summed(self) -> int:
        """Return the floats of the gradients of the largest convolution."""
        parameters = self.network.parameters
        of_ops = [self.plan.ops[number].parameters for number in self.network.layers]
        sizes = (sum(len(parameters.part(n, parameters.values)) for n in names) for names in of_ops)
        return _line(max(sizes, default=0))

    def _placed(self) -> tuple[dict[Key, int], int]:
        """Return where each tensor lies in the arena, and what all need, in float32."""
        return place(self.plan, self.schedule, self._size)

    def _scratch_floats(self) -> int:
        """Return room for the neediest op."""
        stored = self.schedule.narrow - self.schedule.widened
        needs = (
            float_op(op).scratch_floats(self.network, number, self.mode, stored)
            for number, op in enumerate(self.plan.ops)
        )
        return max(needs, default=0)

    def _account(self) -> Memory:
        values, tensors = self.network.parameters.values, 4 * self._tensor_floats
        scratch = self._sums.nbytes + self.transposed.nbytes
        scratch += self.partial.nbytes
        scratch += sum(op.room_bytes for op in self._ops)
        scratch += sum(stored.room_bytes for stored in self._stored.values())
        return Memory(
            activations=tensors,
            weights=values.nbytes,
            gradients=self.gradient.nbytes,
            optimiser=self.velocity.nbytes,
            indices=self.network.index_bytes,
            scratch=self._arena.nbytes - tensors + scratch,
        )

    def moved_bytes(self) -> int:
        """Return the bytes of tensors that a step reads and writes: each once for every op.

        What an op adds to or changes is read and written. Weights are not counted, nor what a
        kernel packs for itself.
        """
        total = 0
        for step in self.schedule.steps:
            for key in self.schedule.touched(self.plan, step, touched):
                total += self._size(key) * (1 + _changes(step, key))
        return 4 * total

    def _tiles(self, examples: int) -> int:
        return -(-examples // self.kernels.lanes)

    def _place(self, kind: str, tensor: int) -> int | None:
        return self._address(kind, tensor) if (kind, tensor) in self._places else None

    def _address(self, kind: str, tensor: int) -> int:
        return int(self._arena.ctypes.data) + 4 * self._places[kind, tensor]

    def _bind(self) -> None:
        """Tell the kernels where everything is."""
        plan, network, trains = self.plan, self.network, self.mode == "train"
        self.tensors = [
            structs.tensor(
                *(tensor, network.norms.get(index), self._sums),
                *(self._place(kind, index) for kind in ("x", "g")),
            )
            for index, tensor in enumerate(plan.tensors)
        ]
        self._stored = {index: self._made_stored(index) for index in self.schedule.narrow}
        gradient = self.gradient if trains else None
        self._norms = {
            index: structs.norm(self.tensors[index], state, network.parameters, gradient)
            for index, state in network.norms.items()
        }
        self._ops: list[FloatOp[Any]] = [
            float_op(op)(op, number, self) for number, op in enumerate(plan.ops)
        ]
        for op in self._ops:
            if op.takes_ranges and op.op.target in self._stored:
                self._stored[op.op.target].take_ranges()

    def _made_stored(self, tensor: int) -> StoredValues:
        before, codes = (self._address(kind, tensor) for kind in ("x", "code"))
        after = self._place("wide", tensor)
        planes = self._held(tensor) * self.tensors[tensor].channels
        sizes = planes, self.kernels.lanes, self.stored_bits
        return StoredValues(self.tensors[tensor], before, codes, after, *sizes)

    @property
    def repeated(self) -> int:
        """How many of the plan's first ops run more than once in a pass."""
        return 0

    @property
    def tiles(self) -> int:
        """Tiles of the batch that is run."""
        return self._tiles(self._examples)

    @property
    def most_tiles(self) -> int:
        """Tiles of the largest batch."""
        return self._tiles(self.batch)

    def lanes(self, kind: str, tensor: int) -> Floats:
        """See `Workspace.lanes`."""
        shape = (self.tiles, *self.plan.tensors[tensor].shape, self.kernels.lanes)
        begin = self._places[kind, tensor]
        return self._arena[begin : begin + int(np.prod(shape))].reshape(shape)

    def argmax(self, tensor: int) -> int | None:
        """See `Workspace.argmax`."""
        return self._place("argmax", tensor)

    def trains(self, name: str | None) -> bool:
        """See `Workspace.trains`."""
        return name is not None and (self.trained is None or name in self.trained)

    def normalises(self, number: int) -> bool:
        """See `Workspace.normalises`."""
        return self._completes(number) and self._has_batch_norm(self.plan.ops[number].target)

    def _completes(self, number: int) -> bool:
        steps = self.schedule.steps
        return any(isinstance(s, Forward) and s.op == number and s.completes for s in steps)

    def _has_batch_norm(self, tensor: int) -> bool:
        return self.mode != "evaluate" and tensor in self._norms

    # Running

    def restart(self, seed: int) -> None:
        """Start the draws anew by which stored values are rounded."""
        self._seed, self._step = seed, 0

    def forward(self, inputs: Floats, order: NDArray[np.int64]) -> None:
        """Run the examples inputs[order], float32 [.., channels, height, width], forward.

        A plan of tokens takes int64 [.., tokens].

        Raises:
            EngineError: There are more of them than planned, none, too few for a norm, or they
                have another shape.
        """
        inputs, order = loaded(inputs, np.ascontiguousarray(order, np.int64))
        self._check_batch(inputs, order)
        if self._tokens:
            inputs, order = inputs[order], np.arange(len(order))
            check_tokens(self._tokens, inputs)
            inputs = inputs.astype(np.float32)
        if len(order) != self._examples:
            self._resize(len(order))
        for index, stored in self._stored.items():
            stored.begin(derive_key(self._seed, self._step, index, 2))
        self._step += 1
        self._load(inputs, order)
        self._run_forward()

    def _load(self, inputs: Floats, order: NDArray[np.int64]) -> None:
        self._load_to(self._address("x", 0), inputs, order)

    def _load_to(self, address: int, inputs: Floats, order: NDArray[np.int64]) -> None:
        """Write the examples inputs[order] as tiles."""
        self.kernels.load_examples(
            c_void_p(pointer(inputs)),
            c_void_p(pointer(order)),
            c_int64(len(order)),
            c_int64(math.prod(self.plan.tensors[0].shape)),
            c_void_p(address),
        )

    def _run_forward(self) -> None:
        self._forward_walk.run()

    def loss(self, targets: NDArray[Any]) -> float:
        """Return the plan's loss of the batch that ran forward; targets [n, ...].

        In training this also makes the gradient of the output.

        Raises:
            EngineError: The targets are not such as the loss takes, or not as many as the examples.
        """
        check_targets(self.plan, targets, self._examples)
        if has_kernel(self.plan):
            output = self.tensors[self.plan.output]
            run = self._run_over_tiles
            return kernel_loss(self.plan, self.kernels, output, targets, self.tiles, run)
        loss, gradient = self.plan.loss.gradient(self.outputs().astype(np.float64), targets)
        if self.mode == "train":
            self._set_gradient(gradient)
        return loss

    def _run_over_tiles(self, kernel: native.Kernel, *arguments: Any) -> None:
        self._walk([(None, self.shared(kernel, self.tiles, *arguments))]).run()

    def _set_gradient(self, gradient: NDArray[np.float64]) -> None:
        """Take the gradient of the output, [n, ...]; that of lanes without an example is 0."""
        tiles = self.lanes("g", self.plan.output)
        tiles[:] = in_lanes(gradient.reshape(-1, *tiles.shape[1:-1]), self.kernels.lanes)

    def backward(self, before: Callable[[int], None] | None = None) -> None:
        """Compute `gradient` for the batch whose loss was taken.

        Args:
            before: Called with the number of each op before its backward pass.
        """
        self.gradient[:] = 0
        self._run_backward(before)
        self.network.parameters.mask_gradient(self.gradient)

    def _run_backward(self, before: Callable[[int], None] | None) -> None:
        for stored in self._stored.values():
            stored.turn()
        self._backward_walk.run(before)

    def step(self, rate: float, momentum: float, decay: float) -> None:
        """Move the trained weights by one step of SGD along `gradient`."""
        whole = (self.network.parameters.values, self.velocity, self.gradient)
        rates = (c_float(rate), c_float(momentum), c_float(decay))
        for part in self.network.parameters.parts(self.moved):
            arrays = [vector[part] for vector in whole]
            self.kernels.sgd(
                *(c_void_p(pointer(array)) for array in arrays), c_int64(len(arrays[0])), *rates
            )

    def outputs(self) -> Floats:
        """Return what the model returns for the batch, float32 [n, ...]."""
        return self.read(self.plan.output).reshape(self._examples, *self.plan.output_shape)

    def read(self, index: int) -> Floats:
        """Return what is read of a tensor, float32 [n, channels, height, width].

        Its memory may be another's by now. Sure to be there are the output and, between forward and
        backward pass, what the latter reads: tensors with a norm or activation that need gradients.
        """
        tensor = self.tensors[index]
        rows = np.empty((self._examples, *self.plan.tensors[index].shape), np.float32)
        self.kernels.read_examples(byref(tensor), c_void_p(pointer(rows)))
        return rows

    def raw(self, index: int) -> Floats:
        """Return the stored values of a tensor that was just written, as `read` orders them."""
        tensor = structs.tensor(
            StoredTensor(self.plan.tensors[index].shape),
            None,
            self._sums,
            self._place("x", index),
            None,
        )
        tensor.examples = self._examples
        rows = np.empty((self._examples, *self.plan.tensors[index].shape), np.float32)
        self.kernels.read_examples(byref(tensor), c_void_p(pointer(rows)))
        return rows

    def full_gradient(self, number: int, rows: int) -> Iterator[Floats]:
        """Yield the gradients of ALL weights of op `number`, pruned or not, `rows` rows at a time.

        Each is float32 [rows, weights of a row] and is overwritten by the next. Only to be called
        from `before` of the backward pass.
        """
        return self._ops[number].full_gradient(self, rows)

    def _check_batch(self, inputs: Floats, order: NDArray[np.int64]) -> None:
        check_inputs(self.plan, inputs, np.int64 if self._tokens else np.float32)
        check_order(order, len(inputs), self.batch)
        if self.mode != "evaluate":
            check_statistics(self.plan, len(order))

    def _resize(self, examples: int) -> None:
        """Make ready for batches of `examples`."""
        self._examples = examples
        for tensor in self.tensors:
            tensor.examples = examples
        for op in self._ops:
            op.resize(self)
        self._make_walks()

    def _make_walks(self) -> None:
        forward, backward = (Forward, Narrow), (Widen, Finish, Backward)
        steps = self.schedule.steps
        self._forward_walk = self._walk(
            (None, call) for step in steps if isinstance(step, forward)
            for call in self._forward_step(step)
        )  # fmt: skip
        self._backward_walk = self._walk(
            pair for step in steps if isinstance(step, backward)
            for pair in self._backward_step(step)
        )  # fmt: skip

    def _walk(self, calls: Iterable[tuple[int | None, Call]]) -> Walk:
        return Walk(self.kernels, self._team, calls)

    # Steps as calls

    def _forward_step(self, step: Forward | Narrow) -> Iterator[Call]:
        yield from self._tiles_forward(step)
        yield from self._norm_forward(step)

    def _tiles_forward(self, step: Forward | Narrow) -> Iterator[Call]:
        """Yield what a step does to each tile by itself."""
        if isinstance(step, Narrow):
            stored = byref(self._stored[step.tensor].struct)
            yield self.shared(self.kernels.narrow, self.tiles, stored)
            return
        op, target = self._ops[step.op], self.plan.ops[step.op].target
        calls = op.forward(self)
        yield from calls if isinstance(calls, Sequence) else [calls]
        if self.normalises(step.op) and not op.takes_moments:
            tensor = byref(self.tensors[target])
            yield self.shared(self.kernels.tensor_moments, self.tiles, tensor)

    def _norm_forward(self, step: Forward | Narrow) -> Iterator[Call]:
        """Yield what follows once all tiles of what a norm normalises are there."""
        if isinstance(step, Narrow) or not self.normalises(step.op):
            return
        op, target = self._ops[step.op], self.plan.ops[step.op].target
        yield self._norm_call(self.kernels.norm_forward, target, op.tiles_per_part)
        if self.mode == "statistics":
            yield functools.partial(_freeze, weakref.proxy(self), target)

    def _backward_step(self, step: Widen | Finish | Backward) -> Iterator[tuple[int | None, Call]]:
        yield from self._tiles_backward(step)
        for call in self._norms_backward(step):
            yield None, call

    def _tiles_backward(self, step: Widen | Finish | Backward) -> Iterator[tuple[int | None, Call]]:
        """Yield what a step does to each tile by itself, with the op that a call begins."""
        if isinstance(step, Widen):
            stored = byref(self._stored[step.tensor].struct)
            yield None, self.shared(self.kernels.widen, self.tiles, stored)
        elif isinstance(step, Finish):
            tensor = byref(self.tensors[step.tensor])
            yield None, self.shared(self.kernels.finish_gradient, self.tiles, tensor)
        else:
            numbers = itertools.chain([step.op], itertools.repeat(None))
            calls = self._ops[step.op].backward(self, step.contributions)
            yield from zip(numbers, calls, strict=False)

    def _norms_backward(self, step: Widen | Finish | Backward) -> Iterator[Call]:
        """Yield what follows once all tiles of the gradients that a step finishes are there."""
        per_part = self._ops[step.op].tiles_per_part if isinstance(step, Backward) else 1
        for tensor in finished_by(step):
            yield from self._norm_backward(tensor, per_part)

    def _norm_backward(self, tensor: int, per_part: int) -> Iterator[Call]:
        if tensor in self._norms:
            yield self._norm_call(self.kernels.norm_backward, tensor, per_part)

    def _norm_call(self, kernel: native.Kernel, tensor: int, per_part: int) -> KernelCall:
        channels = self.plan.tensors[tensor].shape[0]
        return self.shared(kernel, channels, byref(self._norms[tensor]), per_part)

    def shared(
        self, kernel: native.Kernel, count: int, *arguments: Any, scratch: bool = False
    ) -> KernelCall:
        """See `Workspace.shared`."""
        return KernelCall(kernel, arguments, count, scratch)

    def summed(
        self, kernel: native.Kernel, count: int, *arguments: Any, sums: Sequence[SummedVector]
    ) -> KernelCall:
        """See `Workspace.summed`."""
        return KernelCall(kernel, arguments, count, True, tuple(sums))

    def alone(self, kernel: native.Kernel, *arguments: Any) -> KernelCall:
        """See `Workspace.alone`."""
        return KernelCall(kernel, arguments)

    def scratch_of(self, thread: int) -> c_void_p:
        """See `Workspace.scratch_of`."""
        return c_void_p(pointer(self._scratch[thread]))


def _freeze(program: SparseProgram, index: int) -> None:
    """Let a tensor whose moments are taken be read under the statistics of `program.frozen`."""
    if (state := program.frozen) is None:
        return
    norm = program.network.norms[index]
    if norm.norm.kind == "l1-batch":
        mean = state.stats[norm.norm.stats[0]].astype(np.float64)
        norm.spread[:] = np.abs(program.raw(index) - mean[:, None, None]).sum((0, 2, 3))
    norm.use_running(state)


def _changes(step: Step, key: Key) -> bool:
    """Say whether a step writes anew what it also reads."""
    kind, tensor = key
    if isinstance(step, Finish):
        return kind == "g"
    given = step.contributions if isinstance(step, Backward) else ()
    return kind == "g" and any(c.tensor == tensor and c.accumulate for c in given)


def _line(count: int) -> int:
    """Return `count` floats rounded up to whole cache lines."""
    return -(-count // _LINE) * _LINE


def _aligned(count: int, align: int) -> Floats:
    """Return `count` zeros that start at a multiple of `align` floats."""
    # Room behind, too: numpy asks for huge pages, and the last one must fit its allocation.
    room = np.zeros(count + 2 * align, np.float32)
    skip = -(room.ctypes.data // 4) % align
    return room[skip : skip + count]
