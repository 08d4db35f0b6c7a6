"""How the sparse engine runs an op of a plan: its share of both passes, as calls of kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Sequence
from ctypes import c_void_p
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.kernels import native
from fedkit.engine.kernels.network import Network
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import Plan, PlanOp

Mode = Literal["train", "statistics", "evaluate"]
"""Training; forward only under the batch's statistics; forward only under given ones."""

Floats = NDArray[np.float32]
AnyOp = TypeVar("AnyOp", bound=PlanOp)


class SummedVector(NamedTuple):
    """A vector that units add to: its address, None where it is not wanted, and its floats."""

    address: int | None
    floats: int


@dataclass(frozen=True)
class KernelCall:
    """kernel(*arguments), of which threads may share units: (*arguments, first, last[, scratch]).

    Attributes:
        kernel: Of the engine.
        arguments: Addresses, then a float64, then whole numbers. What they refer to must live as
            long as the call is made, of what `byref` returned it does.
        units: What the threads share, such as tiles; None: one of them makes the call.
        scratch: Whether it takes scratch memory.
        sums: What all units add to, in the order of one thread.
    """

    kernel: native.Kernel
    arguments: tuple[Any, ...]
    units: int | None = None
    scratch: bool = False
    sums: tuple[SummedVector, ...] = ()


Call = KernelCall | Callable[[], object]


class Workspace(Protocol):
    """What an op may use of the program that it is part of.

    Attributes:
        network: The model and its weights.
        mode: What the program does.
        kernels: The compiled kernels.
        tensors: The struct of each tensor.
        gradient: Of all parameters, float32, like `network.parameters.values`; in training.
        transposed: Room for the weights of one dense layer.
    """

    network: Network
    mode: Mode
    kernels: native.Kernels
    tensors: list[native.CTensor]
    gradient: Floats
    transposed: Floats

    @property
    def plan(self) -> Plan:
        """The model."""

    @property
    def tiles(self) -> int:
        """Tiles of the batch that is run."""

    @property
    def most_tiles(self) -> int:
        """Tiles of the largest batch."""

    def trains(self, name: str | None) -> bool:
        """Say whether a parameter's gradient is wanted."""

    def normalises(self, number: int) -> bool:
        """Say whether op `number` completes a tensor that is normalised by its own statistics."""

    def lanes(self, kind: str, tensor: int) -> Floats:
        """Return values "x" or gradient "g" of a tensor: [tiles, channels, height, width, lanes].

        It is a view; examples lie along the first and the last axis, those beyond the batch too.
        """

    def argmax(self, tensor: int) -> int | None:
        """Return the address of a byte per value of a tensor for where its maxima were.

        None: these are looked for again, or no backward pass follows.
        """

    def shared(
        self, kernel: native.Kernel, count: int, *arguments: Any, scratch: bool = False
    ) -> KernelCall:
        """Return a call of kernel(*arguments, first, last[, scratch]), split over the threads."""

    def summed(
        self, kernel: native.Kernel, count: int, *arguments: Any, sums: Sequence[SummedVector]
    ) -> KernelCall:
        """Return a call of kernel(*arguments, first, last, scratch, *sums), split over the threads.

        What several threads add to a sum has the bits of what one does.
        """

    def alone(self, kernel: native.Kernel, *arguments: Any) -> KernelCall:
        """Return a call of kernel(*arguments), by one thread."""

    def scratch_of(self, thread: int) -> c_void_p:
        """Return the scratch memory of a thread."""


class FloatOp(ABC, Generic[AnyOp]):
    """One op of one program of the sparse engine.

    Nothing here may hold the workspace, which would keep its memory until a garbage collection:
    calls hold what they need.

    Args:
        op: The op.
        number: Its number in the plan.
        work: The program's memory.

    Attributes:
        tiles_per_part: Tiles whose channel sums lie together where its kernel sums for a norm.
        takes_moments: Its forward kernel takes the moments of a target that is normalised.
        by_tiles: Each of its calls that is shared works on tiles, one by itself, and what they add
            to is the sums of the call; so it can run again, tile by tile.
        takes_ranges: It takes the ranges of planes that it writes.
        room_bytes: Memory of its own.
    """

    tiles_per_part = 1
    takes_moments: ClassVar[bool] = False
    by_tiles: ClassVar[bool] = False
    takes_ranges: bool = False
    room_bytes = 0

    def __init__(self, op: AnyOp, number: int, work: Workspace) -> None:
        self.op, self.number = op, number

    @staticmethod
    def scratch_floats(network: Network, number: int, mode: Mode, stored: Container[int]) -> int:
        """Return the scratch that an op needs of a thread, in float32.

        Args:
            network: The model.
            number: Of the op.
            mode: What the program does.
            stored: Tensors of which the backward pass reads codes, if `PlanOp.reads_codes`.
        """
        return 0

    @staticmethod
    def overwrites(network: Network, number: int) -> bool:
        """Say whether results, of either pass, may lie where what it reads lay, tile for tile."""
        return False

    def resize(self, work: Workspace) -> None:
        """Make ready for another number of examples."""

    def locate(self, work: Workspace) -> None:
        """Take over where its memory lies, beside its tensors, which may have moved."""

    @abstractmethod
    def forward(self, work: Workspace) -> Call | Sequence[Call]:
        """Return the forward pass, in one call or several."""

    @abstractmethod
    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """Yield the backward pass: what is given to the gradients of parameters and sources.

        Args:
            work: The program.
            given: The sources that need a gradient. Of one that is shared there is nothing to do;
                what is finished needs `PlanOp.finishes_gradients`.
        """

    def full_gradient(self, work: Workspace, rows: int) -> Iterator[Floats]:
        """Yield the gradients of ALL entries of a prunable weight, pruned or not, by rows."""
        raise NotImplementedError(f"op {self.number} ({self.op.kind}) has no prunable weight")

    def add_full_gradient(
        self, work: Workspace, to: Floats, row: int, first: int, last: int
    ) -> None:
        """Add what some parts of the batch give to the gradients of ALL entries of some rows.

        Args:
            work: The program.
            to: [rows, weights of a row].
            row: The first row.
            first: The first part.
            last: The part behind the last one.
        """
        raise NotImplementedError(f"op {self.number} ({self.op.kind}) has no prunable weight")


class NumpyFloatOp(FloatOp[AnyOp]):
    """An op in numpy, until it is worth a kernel. It runs on one thread.

    Arrays are float32 [tiles, channels, height, width, lanes]; examples lie along the first and the
    last axis and must not be mixed.
    """

    def __init__(self, op: AnyOp, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        if not op.rereads:
            raise TypeError(
                f"{type(self).__name__} reads its sources in the backward pass, whose memory may "
                f"be another's by then; let {type(op).__name__}.rereads return True"
            )

    @abstractmethod
    def value(self, *sources: Floats) -> Floats:
        """Return what it writes, of what it reads."""

    @abstractmethod
    def gradients(self, gradient: Floats, *sources: Floats) -> Sequence[Floats]:
        """Return the gradient of each source."""

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        target, reads = work.lanes("x", self.op.target), self._reads(work)

        def run() -> None:
            target[...] = self.value(*(read() for read in reads))

        return run

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        if not given:
            return
        passed, reads = _passed(work, self.op.target), self._reads(work)
        places = [(self.op.sources.index(g.tensor), g.accumulate, work.lanes("g", g.tensor))
                  for g in given]  # fmt: skip

        def run() -> None:
            found = self.gradients(passed(), *(read() for read in reads))
            for place, accumulate, to in places:
                to[...] = to + found[place] if accumulate else found[place]

        yield run

    def _passed(self, work: Workspace) -> Callable[[], Floats]:
        """Return what gives the gradient of what it writes."""
        return _passed(work, self.op.target)

    def _reads(self, work: Workspace) -> list[Callable[[], Floats]]:
        """Return what gives each source as it is read."""
        return [_read(work, source) for source in self.op.sources]


def _read(work: Workspace, tensor: int) -> Callable[[], Floats]:
    """Return what reads a tensor: `read_value` of tensor.h."""
    x, norm = work.lanes("x", tensor), work.network.norms.get(tensor)
    activation = work.plan.tensors[tensor].activation

    def read() -> Floats:
        y = x if norm is None else _across(norm.scale) * x + _across(norm.shift)
        if activation == "none":
            return y
        return np.clip(y, 0, np.float32(6 if activation == "relu6" else np.inf))

    return read


def _passed(work: Workspace, tensor: int) -> Callable[[], Floats]:
    """Return what passes a finished gradient through a norm: `raw_gradient` of tensor.h."""
    g, norm = work.lanes("g", tensor), work.network.norms.get(tensor)
    if norm is None:
        return lambda: g
    x, l1 = work.lanes("x", tensor), norm.norm.kind == "l1-batch"
    valid = np.arange(g.shape[0] * g.shape[-1]).reshape(g.shape[0], 1, 1, 1, -1)
    valid = (valid < work.tensors[tensor].examples).astype(np.float32)

    def passed() -> Floats:
        carrier = np.sign(x - _across(norm.mean)) if l1 else x
        return np.asarray(
            valid * (_across(norm.a) * g + _across(norm.b) * carrier + _across(norm.c))
        )

    return passed


def _across(values: Floats) -> Floats:
    return values[:, None, None, None]
