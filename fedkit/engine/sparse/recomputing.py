"""A program that runs the first ops of its plan a tile at a time, again for every norm."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import EngineError
from fedkit.engine.kernels.network import Network
from fedkit.engine.kernels.structs import pointer
from fedkit.engine.ops.registry import float_op
from fedkit.engine.plan.execution import (
    Backward,
    Finish,
    Forward,
    Key,
    Widen,
    finished_by,
)
from fedkit.engine.plan.recomputation import PlanHead, heads, passes, place_passes
from fedkit.engine.sparse.float_op import Call, Floats, KernelCall, Mode
from fedkit.engine.sparse.one_call import Walk
from fedkit.engine.sparse.program import Memory, SparseProgram

_BLOCK = 1 << 16
"""Floats of the gradients of all weights of some rows, which are summed tile by tile."""


def heads_of(network: Network) -> Iterator[PlanHead]:
    """Yield what of a network can run tile by tile: see `fedkit.engine.plan.recomputation`."""
    plan = network.plan

    def able(number: int) -> bool:
        op, layer = plan.ops[number], network.layers.get(number)
        norm = plan.tensors[op.target].norm
        # An L1 norm looks at its values twice.
        once = norm is None or norm.kind == "batch"
        single = layer is None or layer.geometry.tiles_per_part == 1
        return float_op(op).by_tiles and once and single and not op.takes_tokens

    return heads(plan, able)


@dataclass(frozen=True)
class _Leg:
    """Steps of the head up to one that norms wait for, or to the end.

    Attributes:
        tiles: What is done to a tile.
        normed: The tensors whose sums these leave.
        norms: What follows once all tiles are done.
    """

    tiles: Walk
    normed: frozenset[int]
    norms: Walk


@dataclass(frozen=True)
class _StepBack:
    """A step of the head's backward pass.

    Attributes:
        op: Whose backward pass it is, if one's.
        quiet: What it does to a tile, but for the gradients of weights.
        tiles: All that it does to a tile.
        normed: The tensors whose sums it leaves.
        norms: What follows once all tiles are done.
    """

    op: int | None
    quiet: Walk
    tiles: Walk
    normed: frozenset[int]
    norms: Walk


class RecomputingProgram(SparseProgram):
    """Holds a tile of what its head computes. The results are the bits of a `SparseProgram`.

    Tiles run one after the other, each by one thread.

    Args:
        network: The model and its weights.
        mode: "train" or "statistics"; an evaluation needs few examples at a time anyway.
        head: What runs tile by tile, one of `heads_of(network)`.
        batch: Most examples of one batch.
        threads: That share each step of the tail.
        trained: Names of the weights whose gradients are wanted; None: of all.
        stored_bits: Bits of what a backward pass reads of the forward pass.
    """

    def __init__(
        self,
        network: Network,
        mode: Mode,
        head: PlanHead,
        batch: int,
        threads: int = 1,
        trained: frozenset[str] | None = None,
        stored_bits: int = 32,
    ) -> None:
        self.head, self._tile = head, 0
        self._computes_again = False
        super().__init__(network, mode, batch, threads, trained, stored_bits)

    def storing(self, bits: int) -> RecomputingProgram:
        """Return a program for the same that stores so many bits."""
        how = self.network, self.mode, self.head, self.batch, self.threads, self.trained
        return RecomputingProgram(*how, bits)

    @property
    def repeated(self) -> int:
        """See `SparseProgram.repeated`."""
        return self.head.count

    # Memory

    def _apart(self) -> Container[int]:
        return {self.head.edge}

    def _overwriting(self) -> frozenset[int]:
        """Leave out what reads in the memory of a tile and writes in that of the batch."""
        ops = enumerate(self.plan.ops[: self.head.count])
        return super()._overwriting() - {n for n, op in ops if op.target == self.head.edge}

    def _held(self, tensor: int) -> int:
        return 1 if tensor in self.head.inner else super()._held(tensor)

    def _placed(self) -> tuple[dict[Key, int], int]:
        return place_passes(self.plan, self.schedule, self.head, self._size)

    def _allocate(self) -> None:
        super()._allocate()
        self._unread = np.zeros_like(self._sums)

    def _account(self) -> Memory:
        memory, block = super()._account(), 4 * _BLOCK * (self.mode == "train")
        return replace(memory, scratch=memory.scratch + self._unread.nbytes + block)

    def _ahead(self, tensor: int, size: int) -> int:
        """Return the bytes of the tiles before the one that there is, of `size` bytes a value."""
        channels, height, width = self.plan.tensors[tensor].shape
        return self._tile * channels * height * width * self.kernels.lanes * size

    def argmax(self, tensor: int) -> int | None:
        """See `Workspace.argmax`."""
        if tensor not in self.head.inner:
            return super().argmax(tensor)
        place = super().argmax(tensor) if self._computes_again else None
        return None if place is None else place - self._ahead(tensor, 1)

    def _move(self, tile: int, again: bool) -> None:
        """Let what the head computes be of one tile, in its first passes or when it runs again."""
        self._tile, self._computes_again = tile, again
        for index in self.head.inner:
            tensor, ahead = self.tensors[index], self._ahead(index, 4)
            if index in self._stored:
                self._stored[index].at(tile)
            if (place := self._place("x" if again else "early", index)) is not None:
                tensor.x = place - ahead
            if (place := self._place("g", index)) is not None:
                tensor.gradient = place - ahead
        for op in self._ops[: self.head.count]:
            op.locate(self)
        if (place := self._place("x" if again else "early", 0)) is not None:
            lanes = self.kernels.lanes
            self._load_to(place, self._inputs, self._order[tile * lanes : (tile + 1) * lanes])

    def _sum_for(self, normed: frozenset[int]) -> None:
        """Let the sums of these tensors be taken; those of others would lie in the same memory."""
        for index in (*self.head.inner, self.head.edge):
            taken = self._sums if index in normed else self._unread
            self.tensors[index].sums = pointer(taken)

    # Walks

    def _make_walks(self) -> None:
        by = passes(self.plan, self.schedule, self.head)
        self._legs = [*self._made_legs(by.first)]
        self._forward_walk = self._walk(
            (None, call) for step in by.tail for call in self._forward_step(step)
        )
        self._backward_walk = self._walk(
            pair for step in by.tail_back for pair in self._backward_step(step)
        )
        self._again = self._tile_walk(call for s in by.again for call in self._tiles_forward(s))
        self._back = [self._step_back(step) for step in by.back]

    def _tile_walk(self, calls: Iterable[Call]) -> Walk:
        return self._walk((None, _of_a_tile(call)) for call in calls)

    def _made_legs(self, steps: Sequence[Forward]) -> Iterator[_Leg]:
        calls = list[Call]()
        for step in steps:
            calls += self._tiles_forward(step)
            if norms := [*self._norm_forward(step)]:
                normed = frozenset({self.plan.ops[step.op].target})
                yield _Leg(self._tile_walk(calls), normed, self._walk((None, n) for n in norms))
                calls = []
        if calls:
            yield _Leg(self._tile_walk(calls), frozenset(), self._walk(()))

    def _step_back(self, step: Widen | Finish | Backward) -> _StepBack:
        calls = [call for _, call in self._tiles_backward(step)]
        quiet = [replace(c, sums=()) if isinstance(c, KernelCall) else c for c in calls]
        return _StepBack(
            op=step.op if isinstance(step, Backward) else None,
            quiet=self._tile_walk(quiet),
            tiles=self._tile_walk(calls),
            normed=frozenset(finished_by(step)) & self._norms.keys(),
            norms=self._walk((None, call) for call in self._norms_backward(step)),
        )

    # Running

    def _load(self, inputs: Floats, order: NDArray[np.int64]) -> None:
        """Take the examples up to the end of the backward pass, to load them tile by tile."""
        self._inputs, self._order = inputs, order

    def _run_forward(self) -> None:
        for number, leg in enumerate(self._legs):
            self._sum_for(leg.normed)
            for tile in range(self.tiles):
                self._move(tile, again=False)
                for earlier in self._legs[: number + 1]:
                    earlier.tiles.at(tile).run()
            leg.norms.run()
        self._sum_for(frozenset({self.head.edge}))
        self._forward_walk.run()

    def _run_backward(self, before: Callable[[int], None] | None) -> None:
        for index in self._stored.keys() - self.head.inner:
            self._stored[index].turn()
        self._backward_walk.run(before)
        first = 0
        for number, step in enumerate(self._back):
            if before is not None and step.op is not None:
                before(step.op)
            if step.normed or step is self._back[-1]:
                self._run_back(first, number + 1)
                first = number + 1

    def _run_back(self, first: int, last: int) -> None:
        """Run the steps first .. last - 1, upon what all steps before them make once more."""
        self._sum_for(self._back[last - 1].normed)
        for tile in range(self.tiles):
            self._run_again(tile, first)
            for step in self._back[first:last]:
                step.tiles.at(tile).run()
        self._back[last - 1].norms.run()

    def _run_again(self, tile: int, last: int) -> None:
        """Make a tile of all that the backward pass reads, and of its gradients up to a step."""
        self._move(tile, again=True)
        self._again.at(tile).run()
        for index in self._stored.keys() & self.head.inner:
            self._stored[index].turn()
        for step in self._back[:last]:
            step.quiet.at(tile).run()

    def full_gradient(self, number: int, rows: int) -> Iterator[Floats]:
        """See `SparseProgram.full_gradient`; of the head it takes a pass for each block of rows."""
        if number >= self.head.count:
            yield from super().full_gradient(number, rows)
            return
        (last,) = (place for place, step in enumerate(self._back) if step.op == number)
        channels = self.plan.tensors[self.plan.ops[number].target].shape[0]
        taps = self.network.layers[number].geometry.full_taps
        # As many rows at a time as there is room for: each time, all before must run again.
        many = rows * max(1, _BLOCK // (rows * taps))
        room = np.empty((min(many, channels), taps), np.float32)
        self._sum_for(frozenset())
        for first in range(0, channels, many):
            block = room[: min(many, channels - first)]
            block[:] = 0
            for tile in range(self.tiles):
                self._run_again(tile, last)
                self._ops[number].add_full_gradient(self, block, first, tile, tile + 1)
            for begin in range(0, len(block), rows):
                yield block[begin : begin + rows]

    def read(self, index: int) -> Floats:
        """See `SparseProgram.read`; of what the head computes there is only a tile."""
        if index in self.head.inner:
            raise EngineError(
                f"tensor {index} is computed a tile at a time; read it without a memory bound"
            )
        return super().read(index)


def _of_a_tile(call: Call) -> Call:
    if isinstance(call, KernelCall) and call.units is not None:
        return replace(call, units=1)
    return call
