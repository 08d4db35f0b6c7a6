"""How the integer engine runs an op of a plan: what its integers are worth, and who computes them.

Three parts. An `IntegerOp` chooses units, multipliers and shifts, the same for every backend. A
backend's part computes: a `NumpyOp`, which defines every number, or a `NativeOp`, which calls a
kernel. Both have the same methods with the same results, and the `IntegerOp` calls those by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from fedkit.core.errors import EngineError
from fedkit.engine.integer.backend import Backend
from fedkit.engine.integer.constants import WIDE, Chain, Ints, Mix, Read, Reals
from fedkit.engine.integer.integer_network import IntegerNetwork
from fedkit.engine.integer.native_backend import NativeBackend
from fedkit.engine.integer.numpy_on_native import NumpyOnNative
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import Plan, PlanOp

LEAST = 1e-100
"""Gradients below count as 0."""

_SUMS = 2.0**30

AnyOp = TypeVar("AnyOp", bound=PlanOp)


def check_sums(bound: Reals | float, what: str, way_out: str) -> None:
    """Raise an `EngineError` where sums may leave int32.

    Args:
        bound: Of their magnitudes.
        what: Names them.
        way_out: What to do then.
    """
    if np.max(bound) >= _SUMS:
        raise EngineError(
            f"the sums of {what} may reach {np.max(bound):.3g}, int32 holds 2^31 with room for "
            f"rounding up to 2^30; {way_out}"
        )


@dataclass(frozen=True)
class Worth:
    """What a stored tensor's codes are worth, per channel: factor * x + offset."""

    factor: Reals
    offset: Reals
    bound: float
    """Largest magnitude a read can give."""


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
class Slope:
    """What a gradient's integers are worth, per channel, and how large they are at most."""

    unit: Reals
    most: Reals

    @classmethod
    def whole(cls, unit: Reals) -> Slope:
        """Return that of integers of 15 bits."""
        return cls(unit, np.full(len(unit), float(WIDE)))


class Units(Protocol):
    """What an op may use of the program that it is part of.

    Attributes:
        network: The model and its weights.
        worth: What the codes of each tensor are worth.
        raw_unit: What 1 of each tensor's raw is worth, per channel; its op sets it.
        slopes: What the integers of each gradient are worth.
        gradient: Of all parameters, int64, like `network.weights`.
        gradient_units: Per parameter what 1 of its gradient is worth, per row.
    """

    network: IntegerNetwork
    worth: MutableMapping[int, Worth]
    raw_unit: MutableMapping[int, Reals]
    slopes: MutableMapping[int, Slope]
    gradient: np.ndarray[Any, np.dtype[np.int64]]
    gradient_units: dict[str, Reals]

    @property
    def plan(self) -> Plan:
        """The model."""

    def channels(self, tensor: int) -> int:
        """Return the channels of a tensor."""

    def trains(self, name: str) -> bool:
        """Say whether a parameter's gradient is wanted."""

    def key(self, number: int) -> int:
        """Return the key by which op `number` rounds at random in this step."""

    def read(self, tensor: int, unit: float, high: int) -> Read:
        """Return how to read a tensor in steps of `unit`, up to `high`."""

    def layer_read(self, number: int, tensor: int) -> tuple[Read, float]:
        """Return how a layer reads a tensor with its bits, and what the result 1 is worth."""

    def scaled_gradient(self, ranges: Reals, bits: int) -> tuple[Reals, float]:
        """Return a power of two per channel, and what 1 is worth of a gradient of so many bits."""

    def passed_bound(self, tensor: int) -> Reals:
        """Return a bound of the passed gradient's magnitude per channel, in real units."""

    def passed_range(self, tensor: int) -> Reals:
        """Return what no passed gradient exceeds, per channel, in real units."""

    def chain_in(
        self,
        tensor: int,
        unit: Reals,
        limit: int,
        factor: Ints | None = None,
        key: int | None = None,
    ) -> Chain:
        """Return how to pass a tensor's gradient, in units of the result."""

    def give(self, given: Contribution, new: Slope) -> Mix | None:
        """Note what a source's gradient is worth then; return how to add, if it holds something."""


class IntegerOp(ABC, Generic[AnyOp]):
    """One op of one program.

    Args:
        op: The op.
        number: Its number in the plan.
        compute: The backend's part.

    Attributes:
        reading: How it read its source, and what 1 was worth, if that is one tensor.
        finer_bits: Bits that its raw has behind those of the codes, where their unit is known
            before the batch; None: the largest value decides the unit.
        raw_is_output: If it writes the logits, they are its raw.
    """

    finer_bits: ClassVar[int | None] = None
    raw_is_output: ClassVar[bool] = False
    reading: tuple[Read, float]

    def __init__(self, op: AnyOp, number: int, compute: Any) -> None:
        self.op, self.number, self.compute = op, number, compute

    @abstractmethod
    def forward(self, units: Units) -> None:
        """Choose a unit for raw, which goes to `units.raw_unit`, and write raw."""

    def check_sums(self, units: Units, bound: Reals | float) -> None:
        """Raise an `EngineError` where sums may leave int32; for ops whose weights decide that."""

    @abstractmethod
    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """Give the target's passed gradient to parameters and to sources.

        Args:
            units: The program.
            given: The sources that need a gradient and do not share the target's.
        """


@dataclass(frozen=True)
class IntegerFamily:
    """The integer half of a row of the registry; each part is made as part(op, number, ...).

    Attributes:
        units: An `IntegerOp`, made with what one of the others gives.
        numpy: Computes, made with a `NumpyBackend`.
        native: Computes, made with a `NativeBackend`; a `SteppedOp` does what `units` does, too.
            None: numpy computes, at the price of copies.
        refused: (op, plan) -> what the integer engine cannot compute, None: it can.
    """

    units: type[IntegerOp[Any]]
    numpy: type[Any]
    native: type[Any] | None = None
    refused: Callable[[Any, Plan], str | None] = lambda op, plan: None

    def make(self, op: PlanOp, number: int, backend: Backend) -> IntegerOp[Any]:
        """Return the op, computed by a backend."""
        if not isinstance(backend, NativeBackend):
            return self.units(op, number, self.numpy(op, number, backend))
        if self.native is None:
            return self.units(op, number, NumpyOnNative(self.numpy, op, number, backend))
        return self.units(op, number, self.native(op, number, backend))
