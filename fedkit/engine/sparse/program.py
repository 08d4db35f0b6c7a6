"""A network bound to memory: every step of forward and backward pass as a call of a kernel.

All tensors lie in one arena whose size is known when the program is made. Nothing is allocated
while it runs.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.kernels import native, structs
from fedkit.engine.kernels.network import Network
from fedkit.engine.kernels.structs import pointer
from fedkit.engine.plan.checks import check_inputs, check_order, check_statistics, check_targets
from fedkit.engine.plan.execution import (
    Backward,
    Contribution,
    Finish,
    Forward,
    forward_schedule,
    place,
    training_schedule,
)
from fedkit.engine.plan.plan import Add, Conv, Copy, LayerNorm, Pool, StoredTensor
from fedkit.sparse.state import ModelState

Mode = Literal["train", "statistics", "evaluate"]
"""Training; forward only under the batch's statistics; forward only under given ones."""

_LINE = 16
_HUGE = 1 << 19
_SUMS_FLOATS = 3

Call = Callable[[], object]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Memory:
    """Bytes a program needs, by purpose; their sum is its peak.

    Attributes:
        activations: Values and gradients of all tensors.
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

    Attributes:
        frozen: In mode "statistics", the state by whose running statistics norms normalise, while
            the moments of what they normalise are taken; None: by those of the batch.
    """

    def __init__(self, network: Network, mode: Mode, batch: int, threads: int = 1) -> None:
        self.network, self.mode, self.batch, self.threads = network, mode, batch, threads
        self._plan, self._kernels = network.plan, network.kernels
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._keep: list[object] = []
        self._examples = 0
        self.frozen: ModelState | None = None
        self.schedule = (
            training_schedule(self._plan) if mode == "train" else forward_schedule(self._plan)
        )
        self._allocate()
        self._bind()
        self.memory = self._account()

    # Memory

    def _allocate(self) -> None:
        lanes, tiles = self._kernels.lanes, self._tiles(self.batch)
        sizes = {
            index: _line(tiles * int(np.prod(tensor.shape)) * lanes)
            for index, tensor in enumerate(self._plan.tensors)
        }
        self._places, self._tensor_floats = place(
            self._plan, self.schedule, lambda key: sizes[key[1]]
        )
        scratch = _line(self._scratch_floats())
        # One block: large enough, it lies in huge pages, which the scratch needs most.
        self._arena = _aligned(self._tensor_floats + self.threads * scratch)
        self._scratch = [
            self._arena[self._tensor_floats + thread * scratch :] for thread in range(self.threads)
        ]
        count = len(self.network.parameters.values) if self.mode == "train" else 0
        self.gradient = np.zeros(count, np.float32)
        self.velocity = np.zeros(count, np.float32)
        self._partial = [
            np.zeros(count, np.float32) for _ in range(self.threads if self.threads > 1 else 0)
        ]
        layers = self.network.layers.values() if self.mode == "train" else ()
        dense = max((layer.geometry.weights for layer in layers if layer.dense), default=0)
        self._transposed = np.empty(dense, np.float32)
        channels = max(tensor.shape[0] for tensor in self._plan.tensors)
        self._sums = np.zeros((tiles, channels, 2), np.float64)
        self._layer_lanes = {
            number: np.zeros((2, tiles * lanes), np.float32)
            for number, op in enumerate(self._plan.ops)
            if isinstance(op, LayerNorm)
        }

    def _scratch_floats(self) -> int:
        """Return room for the padded planes and channel sums of the neediest layer."""
        lanes, needs = self._kernels.lanes, [0]
        for layer in self.network.layers.values():
            geometry = layer.geometry
            planes = geometry.tile_in + (geometry.tile_out if self.mode == "train" else 0)
            channels = max(geometry.source[0], geometry.target[0])
            needs.append(geometry.tiles_per_part * planes + channels * _SUMS_FLOATS * lanes)
        return max(needs)

    def _account(self) -> Memory:
        values, tensors = self.network.parameters.values, 4 * self._tensor_floats
        scratch = self._sums.nbytes + self._transposed.nbytes
        rest = (*self._partial, *self._layer_lanes.values())
        scratch += sum(array.nbytes for array in rest)
        return Memory(
            activations=tensors,
            weights=values.nbytes,
            gradients=self.gradient.nbytes,
            optimiser=self.velocity.nbytes,
            indices=self.network.index_bytes,
            scratch=self._arena.nbytes - tensors + scratch,
        )

    def _tiles(self, examples: int) -> int:
        return -(-examples // self._kernels.lanes)

    def _place(self, kind: str, tensor: int) -> int | None:
        offset = self._places.get((kind, tensor))
        return None if offset is None else self._arena.ctypes.data + 4 * offset

    def _bind(self) -> None:
        """Tell the kernels where everything is."""
        plan, network, trains = self._plan, self.network, self.mode == "train"
        self._tensors = [
            structs.tensor(
                *(tensor, network.norms.get(index), self._sums),
                *(self._place(kind, index) for kind in ("x", "g")),
            )
            for index, tensor in enumerate(plan.tensors)
        ]
        gradient = self.gradient if trains else None
        self._norms = {
            index: structs.norm(self._tensors[index], state, network.parameters, gradient)
            for index, state in network.norms.items()
        }
        self._convs = {
            number: structs.conv(layer, self._tensors, network.parameters)
            for number, layer in network.layers.items()
        }
        for number, conv in self._convs.items():
            layer = network.layers[number]
            op = layer.geometry.op
            conv.direct = _reads_plain(plan.tensors[op.source], op)
            conv.statistics = self._completes(number) and self._has_batch_norm(op.target)
            if trains:
                maps, arrays = structs.backward_maps(layer, self._transposed)
                conv.backward, conv.phases = maps, len(maps)
                self._keep += [maps, arrays]
        self._layers = {
            number: structs.layer(
                op, self._tensors, network.parameters, gradient, self._layer_lanes[number]
            )
            for number, op in enumerate(plan.ops)
            if isinstance(op, LayerNorm)
        }
        self._pools = {
            number: structs.pool(op, plan, self._tensors)
            for number, op in enumerate(plan.ops)
            if isinstance(op, Pool)
        }

    def _completes(self, number: int) -> bool:
        steps = self.schedule.steps
        return any(isinstance(s, Forward) and s.op == number and s.completes for s in steps)

    def _has_batch_norm(self, tensor: int) -> bool:
        return self.mode != "evaluate" and tensor in self._norms

    # Running

    def forward(self, inputs: Floats, order: NDArray[np.int64]) -> None:
        """Run the examples inputs[order], float32 [.., channels, height, width], forward.

        Raises:
            EngineError: There are more of them than planned, none, too few for a norm, or they
                have another shape.
        """
        order = np.ascontiguousarray(order, np.int64)
        self._check_batch(inputs, order)
        if len(order) != self._examples:
            self._resize(len(order))
        elements = int(np.prod(self._plan.tensors[0].shape))
        self._kernels.load_examples(
            c_void_p(pointer(inputs)),
            c_void_p(pointer(order)),
            c_int64(len(order)),
            c_int64(elements),
            c_void_p(self._place("x", 0)),
        )
        for call in self._forward_calls:
            call()

    def loss(self, targets: NDArray[np.int64]) -> float:
        """Return the mean cross-entropy of the batch that ran forward; targets int64 [n].

        In training this also makes the gradient of the logits.

        Raises:
            EngineError: The targets are not classes of the model, or not as many as the examples.
        """
        check_targets(self._plan, targets, self._examples)
        targets = np.ascontiguousarray(targets, np.int64)
        output = self._tensors[self._plan.output]
        return float(self._kernels.cross_entropy(byref(output), c_void_p(pointer(targets))))

    def backward(self, before: Callable[[int], None] | None = None) -> None:
        """Compute `gradient` for the batch whose loss was taken.

        Args:
            before: Called with the number of each op before its backward pass.
        """
        self.gradient[:] = 0
        for number, call in self._backward_calls:
            if before is not None and number is not None:
                before(number)
            call()
        self.network.parameters.mask_gradient(self.gradient)

    def step(self, rate: float, momentum: float, decay: float) -> None:
        """Move the weights by one step of SGD along `gradient`."""
        values = self.network.parameters.values
        arrays = (values, self.velocity, self.gradient)
        self._kernels.sgd(
            *(c_void_p(pointer(array)) for array in arrays),
            c_int64(len(values)),
            c_float(rate),
            c_float(momentum),
            c_float(decay),
        )

    def outputs(self) -> Floats:
        """Return the logits of the batch, float32 [n, classes]."""
        return self.read(self._plan.output).reshape(self._examples, -1)

    def read(self, index: int) -> Floats:
        """Return what is read of a tensor, float32 [n, channels, height, width].

        Its memory may be another's by now. Sure to be there are the output and, between forward and
        backward pass, what the latter reads: tensors with a norm or activation that need gradients.
        """
        tensor = self._tensors[index]
        rows = np.empty((self._examples, *self._plan.tensors[index].shape), np.float32)
        self._kernels.read_examples(byref(tensor), c_void_p(pointer(rows)))
        return rows

    def raw(self, index: int) -> Floats:
        """Return the stored values of a tensor that was just written, as `read` orders them."""
        tensor = structs.tensor(
            StoredTensor(self._plan.tensors[index].shape),
            None,
            self._sums,
            self._place("x", index),
            None,
        )
        tensor.examples = self._examples
        rows = np.empty((self._examples, *self._plan.tensors[index].shape), np.float32)
        self._kernels.read_examples(byref(tensor), c_void_p(pointer(rows)))
        return rows

    def full_gradient(self, number: int, rows: int) -> Iterator[Floats]:
        """Yield the gradients of ALL weights of op `number`, pruned or not, `rows` rows at a time.

        Each is float32 [rows, weights of a row] and is overwritten by the next. Only to be called
        from `before` of the backward pass.
        """
        layer = self.network.layers[number]
        channels = layer.geometry.target[0]
        struct = native.CConv.from_buffer_copy(self._convs[number])
        everything = np.ones(max(channels, layer.geometry.source[0]), np.uint8)
        struct.used_in = struct.used_out = pointer(everything)
        room = np.empty((min(rows, channels), layer.geometry.full_taps), np.float32)
        for first in range(0, channels, rows):
            last = min(first + rows, channels)
            self._kernels.conv_full_gradient(
                byref(struct), first, last, self._scratch_of(0), c_void_p(pointer(room))
            )
            yield room[: last - first]

    def _check_batch(self, inputs: Floats, order: NDArray[np.int64]) -> None:
        check_inputs(self._plan, inputs)
        check_order(order, len(inputs), self.batch)
        if self.mode != "evaluate":
            check_statistics(self._plan, len(order))

    def _resize(self, examples: int) -> None:
        """Make ready for batches of `examples`."""
        self._examples = examples
        for tensor in self._tensors:
            tensor.examples = examples
        for conv in self._convs.values():
            conv.tiles = self._tiles(examples)
        self._forward_calls = [
            call for step in self.schedule.steps if isinstance(step, Forward)
            for call in self._forward_step(step)
        ]  # fmt: skip
        self._backward_calls = [
            pair for step in self.schedule.steps if isinstance(step, (Finish, Backward))
            for pair in self._backward_step(step)
        ]  # fmt: skip

    # Steps as calls

    def _forward_step(self, step: Forward) -> Iterator[Call]:
        op = self._plan.ops[step.op]
        tiles, target = self._tiles(self._examples), byref(self._tensors[op.target])
        k, per_part = self._kernels, 1
        if isinstance(op, Conv):
            conv = byref(self._convs[step.op])
            per_part = self._convs[step.op].tiles_per_part
            yield self._shared(k.conv_forward, -(-tiles // per_part), conv, scratch=True)
        elif isinstance(op, Add):
            sides = (byref(self._tensors[side]) for side in (op.left, op.right))
            yield self._shared(k.add_forward, tiles, *sides, target)
        elif isinstance(op, Copy):
            source = byref(self._tensors[op.source])
            yield self._shared(k.copy_forward, tiles, source, target, op.channel)
        elif isinstance(op, LayerNorm):
            yield self._shared(k.layer_forward, tiles, byref(self._layers[step.op]))
        else:
            yield self._shared(k.pool_forward, tiles, byref(self._pools[step.op]))
        if step.completes and self._has_batch_norm(op.target):
            if not isinstance(op, Conv):
                yield self._shared(k.tensor_moments, tiles, target)
            norm = byref(self._norms[op.target])
            yield lambda: k.norm_forward(norm, per_part)
            if self.mode == "statistics":
                yield functools.partial(_freeze, weakref.proxy(self), op.target)

    def _backward_step(self, step: Finish | Backward) -> Iterator[tuple[int | None, Call]]:
        tiles, k = self._tiles(self._examples), self._kernels
        if isinstance(step, Finish):
            yield None, self._shared(k.finish_gradient, tiles, byref(self._tensors[step.tensor]))
            yield from self._norm_backward(step.tensor, 1)
            return
        op = self._plan.ops[step.op]
        if isinstance(op, Conv):
            yield step.op, self._conv_backward(step.op, step.contributions)
            for given in step.contributions:
                if given.finish:
                    per_part = self._convs[step.op].tiles_per_part
                    yield from self._norm_backward(given.tensor, per_part)
        if isinstance(op, LayerNorm) and (op.weight or op.bias):
            channels = self._plan.tensors[op.target].shape[0]
            yield step.op, self._shared(k.layer_gradients, channels, byref(self._layers[step.op]))
        for given in step.contributions:
            if isinstance(op, LayerNorm):
                layer = self._layers[step.op]
                layer.accumulate = given.accumulate
                yield step.op, self._shared(k.layer_backward, tiles, byref(layer))
            elif isinstance(op, Pool):
                pool = self._pools[step.op]
                pool.accumulate = given.accumulate
                yield step.op, self._shared(k.pool_backward, tiles, byref(pool))
            elif not isinstance(op, Conv) and not given.shared:
                source, target = (byref(self._tensors[t]) for t in (given.tensor, op.target))
                channel = op.channel if isinstance(op, Copy) else 0
                arguments = (source, target, channel, int(given.accumulate))
                yield step.op, self._shared(k.copy_backward, tiles, *arguments)

    def _norm_backward(self, tensor: int, per_part: int) -> Iterator[tuple[None, Call]]:
        if tensor in self._norms:
            norm, run = byref(self._norms[tensor]), self._kernels.norm_backward
            yield None, lambda: run(norm, per_part)

    def _conv_backward(self, number: int, given: tuple[Contribution, ...]) -> Call:
        conv, layer = self._convs[number], self.network.layers[number]
        for contribution in given:
            conv.accumulate, conv.finish = contribution.accumulate, contribution.finish
        parts = -(-self._tiles(self._examples) // conv.tiles_per_part)
        op = layer.geometry.op
        into = self._addresses(op, self.gradient)

        # A call that held the program would keep its memory until a garbage collection.
        program = weakref.proxy(self)

        def run() -> None:
            if layer.dense and given:
                program._kernels.conv_transpose(byref(conv))
            if program._pool is None:
                program._conv_parts(conv, 0, parts, 0, into)
            else:
                program._conv_waves(conv, parts, op)

        return run

    def _conv_parts(
        self, conv: native.CConv, first: int, last: int, thread: int, into: Sequence[c_void_p]
    ) -> None:
        self._kernels.conv_backward(byref(conv), first, last, self._scratch_of(thread), *into)

    def _addresses(self, op: Conv, gradient: Floats) -> tuple[c_void_p, c_void_p]:
        """Return where the gradients of an op's weight and bias lie in `gradient`."""
        part = self.network.parameters.part
        bias = pointer(part(op.bias, gradient)) if op.bias else None
        return c_void_p(pointer(part(op.weight, gradient))), c_void_p(bias)

    def _conv_waves(self, conv: native.CConv, parts: int, op: Conv) -> None:
        """Give each thread one part and room of its own, and add the results in order.

        One thread adds the same sums in the same order, so the bits are the same.
        """
        assert self._pool is not None
        part = self.network.parameters.part
        names = (op.weight, op.bias) if op.bias else (op.weight,)
        for first in range(0, parts, self.threads):
            wave = range(min(self.threads, parts - first))
            for thread in wave:
                for name in names:
                    part(name, self._partial[thread])[:] = 0
            futures = [
                self._pool.submit(
                    self._conv_parts,
                    *(conv, first + t, first + t + 1, t),
                    self._addresses(op, self._partial[t]),
                )
                for t in wave
            ]
            for thread, future in enumerate(futures):
                future.result()
                for name in names:
                    part(name, self.gradient)[:] += part(name, self._partial[thread])

    def _shared(
        self, kernel: native.Kernel, count: int, *arguments: Any, scratch: bool = False
    ) -> Call:
        """Return a call of kernel(*arguments, first, last[, scratch]), split over the threads."""
        if self._pool is None:
            own = (self._scratch_of(0),) if scratch else ()
            ready = (*arguments, c_int(0), c_int(count), *own)
            return lambda: kernel(*ready)
        bounds = np.linspace(0, count, self.threads + 1).astype(int).tolist()
        pieces = [
            (*arguments, first, last, *((self._scratch_of(thread),) if scratch else ()))
            for thread, (first, last) in enumerate(itertools.pairwise(bounds))
            if last > first
        ]
        pool = self._pool
        return lambda: [f.result() for f in [pool.submit(kernel, *piece) for piece in pieces]]

    def _scratch_of(self, thread: int) -> c_void_p:
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


def _reads_plain(source: StoredTensor, op: Conv) -> bool:
    """Say whether a convolution's inputs lie in memory just as it reads them."""
    return source.norm is None and source.activation == "none" and op.padding == (0, 0)


def _line(count: int) -> int:
    """Return `count` floats rounded up to whole cache lines."""
    return -(-count // _LINE) * _LINE


def _aligned(count: int) -> Floats:
    """Return `count` zeros that start at a cache line, and at a huge page if they fill one."""
    align = _HUGE if count >= _HUGE else _LINE
    # Room behind, too: numpy asks for huge pages, and the last one must fit its allocation.
    room = np.zeros(count + 2 * align, np.float32)
    skip = -(room.ctypes.data // 4) % align
    return room[skip : skip + count]
