"""The calls of kernels that the sparse engine makes in a training step, read and not made.

The engine binds a plan to memory and says which kernel is called with what. Here it does so with
names of kernels, so that no second code knows how an op is run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import c_void_p
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import ExportError
from fedkit.engine.kernels.network import Network
from fedkit.engine.ops.add import FloatAdd
from fedkit.engine.ops.conv import FloatConv
from fedkit.engine.ops.copy import FloatCopy
from fedkit.engine.ops.layer_norm import FloatLayerNorm
from fedkit.engine.ops.pool import FloatPool
from fedkit.engine.ops.registry import FAMILIES, float_op
from fedkit.engine.plan.execution import (
    Backward,
    Finish,
    Forward,
    Key,
    Schedule,
    Step,
    Widen,
    finished_by,
)
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.float_op import Call, KernelCall
from fedkit.engine.sparse.program import SparseProgram
from fedkit.sparse.state import Masks
from fedkit.trainer.storage import ConvPart, StorageSizes, in_parts, touched

Array = NDArray[Any]

OPS = (FloatConv, FloatAdd, FloatCopy, FloatPool, FloatLayerNorm)
"""How the sparse engine runs what a trainer can."""


def check_ops(plan: Plan) -> None:
    """Raise an `ExportError` that names the ops of a plan which no trainer in C has."""
    lacking = dict.fromkeys(op.kind for op in plan.ops if not issubclass(float_op(op), OPS))
    if lacking:
        known = sorted(kind for kind, family in FAMILIES.items() if family.sparse in OPS)
        raise ExportError(
            f"the model has {', '.join(lacking)}, which the trainer in C lacks: it has "
            f"{', '.join(known)}. Train such models by fedkit's device on a board with Linux, or "
            "take a convolutional model"
        )


class KernelNames:
    """Stands in for compiled kernels, which nobody calls.

    Attributes:
        simd: As `native.Kernels` has it.
        lanes: Examples of a tile.
    """

    simd = "plain"

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes

    def step(self, kernel: SimpleNamespace) -> int:
        """Return no address: nobody walks."""
        return 0

    def __getattr__(self, name: str) -> SimpleNamespace:
        """Return what has a kernel's name."""
        if name.startswith("_"):
            raise AttributeError(name)
        return SimpleNamespace(__name__=name)


@dataclass(frozen=True)
class MemoryPlace:
    """Where something is: so many bytes behind the beginning of something else."""

    of: Key
    at: int


class RecordedProgram(SparseProgram):
    """A program whose calls are read; its tensors share no memory.

    Args:
        plan: The model.
        masks: Which weights are kept.
        batch: Examples of a step, which fill one tile.
        narrow: Tensors that are stored in few bits.
        bits: Of a stored value.

    Attributes:
        parts: The schedule of `in_parts`.
        sizes: Bytes of what it touches.
    """

    parts: Schedule

    def __init__(
        self, plan: Plan, masks: Masks, batch: int, narrow: frozenset[int], bits: int
    ) -> None:
        check_ops(plan)
        self._wish, self._current = narrow, 0
        kernels: Any = KernelNames(batch)
        network = Network(plan, masks, kernels, part_tiles=1)
        self.sizes = StorageSizes(plan, network.layers, batch, bits)
        super().__init__(network, "train", batch)
        self._resize(batch)
        self._memory = [*self._named_memory()]

    def _placed(self) -> tuple[dict[Key, int], int]:
        dense = frozenset(number for number, layer in self.network.layers.items() if layer.dense)
        self.parts = in_parts(self.plan, self.schedule, self._wish, dense)
        storage = dict[Key, int]()
        places = dict[Key, int]()
        end = 0
        for step in self.parts.steps:
            for key in self.parts.touched(self.plan, step, touched):
                owner = self.parts.storage(key)
                if owner not in storage:
                    storage[owner], end = end, end + max(2, self.sizes(owner) // 4)
                places[key] = storage[owner]
        self._owners = {at: owner for owner, at in storage.items()}
        return places, end

    # Reading

    def calls_of(self, step: Step) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Yield the kernels of a step, each with its arguments.

        A `ConvPart` has a kernel of its own in parts.h.
        """
        if isinstance(step, ConvPart):
            yield from self._part(step)
        elif isinstance(step, Forward):
            self._current = step.op
            yield from map(self._written, self._forward_step(step))
        elif isinstance(step, Finish | Backward):
            yield from (self._written(call) for _, call in self._backward_step(step))
        elif isinstance(step, Widen):
            self.tensors[step.tensor].x = self._address("wide", step.tensor)

    def _written(self, call: Call) -> tuple[str, tuple[Any, ...]]:
        """Return a kernel and all that it is called with, by one thread."""
        assert isinstance(call, KernelCall)
        units = () if call.units is None else (0, call.units)
        scratch = c_void_p(self._place("scratch", self._current))
        whole = (*call.arguments, *units, *((scratch,) if call.scratch else ()))
        return call.kernel.__name__, whole

    def _part(self, step: ConvPart) -> Iterator[tuple[str, tuple[Any, ...]]]:
        op: Any = self._ops[step.op]
        self._current = step.op
        out, struct = c_void_p(self._address("out", step.op)), ctypes.byref(op.struct)
        into = [c_void_p(each.address) for each in op.sums(self)]
        if step.part == "take":
            yield "conv_take", (struct, out)
        elif step.part == "add":
            yield "conv_add", (struct, c_void_p(self._address("in", step.op)), out, *into)
        else:
            sums = c_void_p(self._address("sums", step.op))
            if step.part == "return":
                yield "conv_return", (struct, out, sums, *into)
            else:
                yield "conv_transpose", (struct,)
                yield "conv_give", (struct, out, sums)
            for tensor in finished_by(step):
                yield from map(self._written, self._norm_backward(tensor, 1))

    # Where things are

    def place_of(self, address: int) -> MemoryPlace | None:
        """Return what an address of memory that changes belongs to, or None."""
        begin = int(self._arena.ctypes.data)
        if begin <= address < begin + self._arena.nbytes:
            word = (address - begin) // 4
            at = max(at for at in self._owners if at <= word)
            return MemoryPlace(self._owners[at], address - begin - 4 * at)
        for key, array in self._memory:
            begin = array.ctypes.data
            if begin <= address < begin + array.nbytes:
                return self._inside(key, address - begin)
        return None

    def _inside(self, key: Key, at: int) -> MemoryPlace:
        kind, tensor = key
        if kind == "turned":
            return MemoryPlace(("turned", self._current), at)
        if kind in _CHAIN:
            channels = self.plan.tensors[tensor].shape[0]
            return MemoryPlace(("chain", tensor), 4 * channels * _CHAIN.index(kind) + at)
        return MemoryPlace(key, at)

    def lasting(self) -> dict[Key, int]:
        """Return the bytes of what lasts from step to step."""
        passing = ("turned", _UNUSED, *_CHAIN)
        return {key: array.nbytes for key, array in self._memory if key[0] not in passing}

    def _named_memory(self) -> Iterator[tuple[Key, Array]]:
        yield ("values", 0), self.network.parameters.values
        yield ("gradient", 0), self.gradient
        yield ("velocity", 0), self.velocity
        yield ("sums", 0), self._sums
        yield ("turned", 0), self.transposed
        for tensor, norm in self.network.norms.items():
            unused = "" if norm.norm.kind == "l1-batch" else "signs"
            for name, array in vars(norm).items():
                if isinstance(array, np.ndarray):
                    yield (_UNUSED if name == unused else name, tensor), array
        for number, op in enumerate(self._ops):
            for name, array in vars(op).items():
                if isinstance(array, np.ndarray):
                    yield (f"room {name}", number), array

    def constants(self) -> Iterator[Array]:
        """Yield all arrays that never change."""
        seen = set[int]()
        for each in (*self.network.layers.values(), *self._ops):
            yield from _arrays(each, seen)

    def structs(self) -> Iterator[ctypes.Array[Any]]:
        """Yield all arrays of structs."""
        for op in self._ops:
            yield from (each for each in vars(op).values() if isinstance(each, ctypes.Array))


_CHAIN = ("a", "b", "c")
_UNUSED = "unused"


def _arrays(thing: Any, seen: set[int]) -> Iterator[Array]:
    """Yield the arrays of integers, and of taps, that something of the engine holds."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        if thing.dtype.kind in "iuV" and thing.size:
            yield thing
        return
    inside: Sequence[Any] = ()
    if isinstance(thing, list | tuple):
        inside = thing
    elif hasattr(thing, "__dict__") and type(thing).__module__.startswith("fedkit.engine"):
        inside = [*vars(thing).values()]
    for each in inside:
        yield from _arrays(each, seen)
