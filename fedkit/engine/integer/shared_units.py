"""What a program's integers are worth, in memory that Python shares with the kernels.

An op whose constants the kernels choose (see int_steps.h) and one whose constants Python chooses
thus stand side by side in one network: each finds here what the other left.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Container, Iterator, Mapping, MutableMapping
from ctypes import c_void_p
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import K
from fedkit.engine.integer.constants import Carrier, Reals
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.integer.integer_network import IntegerNetwork
from fedkit.engine.integer.integer_op import Slope, Statistics, Worth
from fedkit.engine.integer.native_backend import NativeBackend
from fedkit.engine.kernels import int_native
from fedkit.engine.kernels.structs import ACTIVATIONS, pointer
from fedkit.engine.plan.structure import Norm
from fedkit.sparse.state import ModelState

Passed = tuple[Reals, Reals, Reals, Carrier]
T = TypeVar("T")

_ARRAYS = ("factor", "offset", "raw_unit", "unit", "most", "a", "b", "c", "deviation")
_OF_NORMS = ("mean", "spread", "variance", "running_mean", "running_deviation")
_ROOM = 17
"""Arrays of int32 that constants of one step are written to."""

_CARRIERS: tuple[Carrier, ...] = ("none", "x", "sign")


class View(MutableMapping[int, T], Generic[T]):
    """What there is of each tensor, made anew of shared memory whenever it is asked for.

    Args:
        count: Of tensors.
        load: Returns what there is, or raises a KeyError.
        store: Writes it; None: it is only read.
    """

    def __init__(
        self,
        count: int,
        load: Callable[[int], T],
        store: Callable[[int, T], None] | None = None,
    ) -> None:
        self._count, self._load, self._store = count, load, store

    def __getitem__(self, tensor: int) -> T:
        """Return what there is of a tensor."""
        return self._load(tensor)

    def __setitem__(self, tensor: int, value: T) -> None:
        """Write what there is of a tensor."""
        assert self._store is not None
        self._store(tensor, value)

    def __delitem__(self, tensor: int) -> None:
        """Leave the tensor as it is: what follows is written before it is read."""

    def clear(self) -> None:
        """See `__delitem__`."""

    def __iter__(self) -> Iterator[int]:
        """Yield the tensors of which there is something."""
        return (tensor for tensor in range(self._count) if self.get(tensor) is not None)

    def __len__(self) -> int:
        """Return their number."""
        return sum(1 for _ in self)


class SharedUnits:
    """The structs that steps of the kernels read and write, and views of them.

    Args:
        network: The model and its weights.
        backend: Holds the tensors.
        gradient: Of all parameters, int64.
        finished: Tensors that get a finished gradient.
        trains: Says whether a parameter's gradient is wanted.
        takes: Whether norms take the statistics of a batch.
        rule: How gradients are scaled, a row of `gradients.RULES`.
        finer: Bits that raw has behind those of the codes, by tensor.

    Attributes:
        trains: As given.
        finer: As given.
        units: What all steps share.
        worths: What the integers of each tensor are worth.
        gradient_units: Per parameter that some step gives a gradient what 1 of it is worth.
        spare: Room for three arrays of int32, beside that which `units` has.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        backend: NativeBackend,
        gradient: NDArray[np.int64],
        finished: Container[int],
        trains: Callable[[str], bool],
        takes: bool,
        rule: str,
        finer: Mapping[int, int],
    ) -> None:
        self.network, self.plan, self.gradient = network, network.plan, gradient
        self.trains, self.takes, self.finer = trains, takes, finer
        self.gradient_units: dict[str, Reals] = {}
        self._channels = [tensor.shape[0] for tensor in self.plan.tensors]
        self.units = self._made_units(takes, rule)
        self.units.scratch = backend.scratch
        self._reals = {
            tensor: np.zeros((len(_ARRAYS), channels))
            for tensor, channels in enumerate(self._channels)
        }
        self._norm_reals = {t: np.zeros((len(_OF_NORMS), self._channels[t])) for t in network.norms}
        self._norms = {
            tensor: self._made_norm(tensor, norm, tensor in finished)
            for tensor, norm in network.norms.items()
        }
        self.worths = [self._made_worth(t, backend) for t in range(len(self._channels))]

    def _made_units(self, takes: bool, rule: str) -> int_native.IntUnits:
        widest = max(self._channels)
        self._whole = np.zeros((_ROOM, widest), np.int32)
        self._sums = np.zeros(5 * widest, np.int64)
        self._room = np.zeros(2 * widest)
        units = int_native.IntUnits(sums=pointer(self._sums), reals=pointer(self._room))
        rows = iter([pointer(row) for row in self._whole])
        for struct in (units.read, units.other, units.chain, units.mix):
            for name, kind in type(struct)._fields_:
                if kind is c_void_p:
                    setattr(struct, name, next(rows))
        self.spare = tuple(rows)
        units.takes, units.rule = takes, list(RULES).index(rule)
        return units

    def _made_norm(self, tensor: int, norm: Norm, trains: bool) -> int_native.IntNorm:
        struct = int_native.IntNorm(eps=norm.eps, k=K, l1=norm.kind == "l1-batch")
        struct.scale, struct.offset = (
            self.parameter(name, self._channels[tensor], trains)
            for name in (norm.weight, norm.bias)
        )
        for name, array in zip(_OF_NORMS, self._norm_reals[tensor], strict=True):
            setattr(struct, name, pointer(array))
        return struct

    def _made_worth(self, tensor: int, backend: NativeBackend) -> int_native.IntWorth:
        struct = int_native.IntWorth(
            units=ctypes.pointer(self.units),
            tensor=ctypes.pointer(backend.tensors[tensor]),
            activation=ACTIVATIONS[self.plan.tensors[tensor].activation],
            finer=self.finer.get(tensor, -1),
        )
        for name, array in zip(_ARRAYS, self._reals[tensor], strict=True):
            setattr(struct, name, pointer(array))
        if tensor in self._norms:
            struct.norm = ctypes.pointer(self._norms[tensor])
        return struct

    def parameter(self, name: str | None, rows: int, wanted: bool) -> int_native.IntParameter:
        """Return the struct of a parameter whose gradient has a unit for each of `rows` rows.

        Args:
            name: Of the parameter; None: there is none.
            rows: How many.
            wanted: Whether the gradient is.
        """
        if name is None:
            return int_native.IntParameter()
        network = self.network
        struct = int_native.IntParameter(
            weight=pointer(network.part(name, network.weights)), point=network.points.address(name)
        )
        if wanted:
            unit = self.gradient_units[name] = np.zeros(rows)
            struct.gradient, struct.unit = pointer(network.part(name, self.gradient)), pointer(unit)
        return struct

    def at(self, tensor: int) -> Any:
        """Return a pointer to what a tensor's integers are worth."""
        return ctypes.pointer(self.worths[tensor])

    def copy_step(
        self, source: int, target: int, channel: int = 0, accumulate: bool = False
    ) -> int_native.IntCopyStep:
        """Return the struct of a copy."""
        source_worth, target_worth = self.at(source), self.at(target)
        return int_native.IntCopyStep(
            source=source_worth, target=target_worth, channel=channel, accumulate=accumulate
        )

    # Views

    def worth(self) -> View[Worth]:
        """Return what codes are worth."""

        def load(tensor: int) -> Worth:
            factor, offset = self._reals[tensor][:2]
            return Worth(factor, offset, self.worths[tensor].bound)

        def store(tensor: int, new: Worth) -> None:
            self._reals[tensor][0], self._reals[tensor][1] = new.factor, new.offset
            self.worths[tensor].bound = new.bound

        return View(len(self._channels), load, store)

    def raw_unit(self) -> View[Reals]:
        """Return what 1 of raw is worth."""

        def store(tensor: int, new: Reals) -> None:
            self._reals[tensor][2] = new

        return View(len(self._channels), lambda tensor: self._reals[tensor][2], store)

    def slopes(self) -> View[Slope]:
        """Return copies of what gradients are worth, as they change within an op."""

        def load(tensor: int) -> Slope:
            return Slope(*self._reals[tensor][3:5].copy())

        def store(tensor: int, new: Slope) -> None:
            self._reals[tensor][3], self._reals[tensor][4] = new.unit, new.most

        return View(len(self._channels), load, store)

    def chains(self) -> View[Passed]:
        """Return how gradients pass norms; those that pass nothing are not there."""

        def load(tensor: int) -> Passed:
            carrier = self.worths[tensor].carrier
            if carrier == 0:
                raise KeyError(tensor)
            a, b, c = self._reals[tensor][5:8]
            return a, b, c, _CARRIERS[carrier]

        return View(len(self._channels), load)

    def statistics(self) -> View[Statistics]:
        """Return copies of what norms saw, as the next batch overwrites it."""

        def load(tensor: int) -> Statistics:
            if not self.takes:
                raise KeyError(tensor)
            return Statistics(*self._norm_reals[tensor][:3].copy())

        return View(len(self._channels), load)

    # Running

    def use_running(self, state: ModelState | None) -> None:
        """Take over the running statistics that norms go by."""
        self.units.running = state is not None
        if state is not None:
            for tensor, norm in self.network.norms.items():
                self._norm_reals[tensor][3:] = running_moments(norm, state)

    def begin(self, examples: int, seed: int, step: int) -> None:
        """Make ready for a batch of so many examples, in whose step rounding is random by these."""
        self.units.tiles = -(-examples // self.network.lanes)
        self.units.seed, self.units.step = seed, step

    def begin_backward(self) -> None:
        """Forget what the last backward pass found."""
        for worth in self.worths:
            worth.carrier = worth.finished = 0

    def is_finished(self, tensor: int) -> bool:
        """Say whether the largest value of a gradient is known."""
        return bool(self.worths[tensor].finished)


def running_moments(norm: Norm, state: ModelState) -> tuple[Reals, Reals]:
    """Return the mean and the deviation, with eps, of a norm's running statistics."""
    mean, variance = (state.stats[name].astype(np.float64) for name in norm.stats)
    if norm.kind == "l1-batch":
        return mean, np.sqrt(variance) + norm.eps
    return mean, np.sqrt(variance + norm.eps)
