"""Integer SGD with momentum over fixed-point weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from ctypes import byref
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import FleetError
from fedkit.core.numerics import (
    derive_key,
    random_bits,
    shift_right_half_up,
    shift_right_stochastic,
)
from fedkit.engine.integer.constants import Ints, Reals, multiplier, to_int32
from fedkit.engine.integer.integer_network import EXTRA, IntegerNetwork
from fedkit.engine.kernels import int_native
from fedkit.engine.kernels.native import Kernels
from fedkit.engine.kernels.structs import pointer
from fedkit.sparse.rows import reduce_rows

_MOST = 2**31 - 1
_MOMENTUM_BITS = 30
_ROUNDED = 1 + 2.0**-10
"""More than what the 15 bits of a multiplier can add to a product."""

_FLOAT32 = 2.0**127


class Sgd:
    """Moves a network's weights: velocity = momentum * velocity + gradient + decay * weight.

    A velocity is kept times the learning rate, in steps of 2^-EXTRA of the weight's, so that it is
    what a weight moves by; the bits it has more are rounded at random. Before each step a
    parameter's point goes to where its largest weight and its longest move fit, so that nothing
    saturates: the longest move has 23 bits, as many as float32 has.

    Args:
        network: The weights.
        kernels: The compiled kernels; None: numpy.
        momentum: 0 to 1.
        weight_decay: At least 0.
        seed: Of random rounding.
        trained: Names of the weights that move; None: all.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        kernels: Kernels | None,
        momentum: float,
        weight_decay: float,
        seed: int,
        trained: frozenset[str] | None = None,
    ) -> None:
        self._trained = trained
        self._network, self._kernels, self._seed, self._step = network, kernels, seed, 0
        self._momentum, self._weight_decay = momentum, weight_decay
        self._bound: tuple[list[str], int] | None = None
        self._ends = {name: self._rows(name) for name in network.plan.weights}
        self._counts = {name: np.diff(ends, prepend=0) for name, ends in self._ends.items()}

    @property
    def momentum(self) -> int:
        """What a velocity is multiplied by, with 30 bits behind the point."""
        return round(math.ldexp(self._momentum, _MOMENTUM_BITS))

    def _rows(self, name: str) -> Ints:
        """Return where rows of one unit end in a parameter's kept weights."""
        for number, layer in self._network.layers.items():
            if layer.geometry.op.weight == name:
                return self._network.row_ends(number)
        size = 1
        for op in self._network.plan.ops:
            if name in op.parameters:
                size = op.row_size(self._network.plan, name)
        count = len(self._network.part(name, self._network.weights))
        return to_int32(np.arange(1, count // size + 1) * size)

    def step(self, gradient: NDArray[np.int64], units: Mapping[str, Reals], lr: float) -> None:
        """Move all weights along a gradient.

        Args:
            gradient: int64 [all kept weights].
            units: Per parameter what 1 is worth, per row.
            lr: Learning rate, greater than 0.

        Raises:
            FleetError: A weight would leave float32.
        """
        self._network.parameters.mask_gradient(gradient)
        moved = [name for name in self._ends if name in units and self._moves(name)]
        if self._kernels is None:
            self._step_numpy(gradient, units, lr, moved)
        else:
            self._step_native(self._kernels, gradient, units, lr, moved)
        self._step += 1

    def _moves(self, name: str) -> bool:
        return self._trained is None or name in self._trained

    # By the compiled kernels

    def _step_native(
        self,
        kernels: Kernels,
        gradient: NDArray[np.int64],
        units: Mapping[str, Reals],
        lr: float,
        moved: list[str],
    ) -> None:
        if self._bound != (moved, gradient.ctypes.data):
            self._bind(gradient, moved)
        for name in moved:
            self._units[name][:] = units[name]
        self._struct.rate, self._struct.step = lr, self._step
        reached = kernels.int_sgd_steps(byref(self._struct), byref(self._updates), 0, len(moved))
        if reached < len(moved):
            raise _too_far(moved[reached], *self._failed.tolist())

    def _bind(self, gradient: NDArray[np.int64], moved: list[str]) -> None:
        """Tell the kernels where everything is."""
        network, number = self._network, {name: n for n, name in enumerate(self._ends)}
        self._units = {name: np.zeros(len(self._ends[name])) for name in moved}
        self._updates = (int_native.IntUpdate * len(moved))()
        for struct, name in zip(self._updates, moved, strict=True):
            vectors = (network.weights, network.velocity, gradient)
            weight, velocity, change = (network.part(name, vector) for vector in vectors)
            struct.weight, struct.velocity = pointer(weight), pointer(velocity)
            struct.gradient, struct.unit = pointer(change), pointer(self._units[name])
            struct.ends, struct.point = pointer(self._ends[name]), network.points.address(name)
            struct.count, struct.rows = len(weight), len(self._ends[name])
            struct.number = number[name]
        rows = max((len(unit) for unit in self._units.values()), default=0)
        self._room, self._failed = np.zeros((2, rows), np.int32), np.zeros(2)
        self._struct = int_native.IntSgd(
            seed=self._seed,
            momentum=self._momentum,
            decay=self._weight_decay,
            multiplier=pointer(self._room[0]),
            shift=pointer(self._room[1]),
            failed=pointer(self._failed),
            momentum_bits=self.momentum,
            extra=EXTRA,
        )
        self._bound = moved, gradient.ctypes.data

    # In numpy

    def _step_numpy(
        self, gradient: NDArray[np.int64], units: Mapping[str, Reals], lr: float, moved: list[str]
    ) -> None:
        decay, shift = multiplier(np.array([self._weight_decay * lr * 2.0**EXTRA]), 40, _MOST)
        self._decay, self._decay_shift = int(decay[0]), int(shift[0])
        for index, (name, ends) in enumerate(self._ends.items()):
            if name not in moved:
                continue
            self._make_room(name, gradient, units[name] * lr, lr)
            point = self._network.points[name] + EXTRA
            rate, shift = multiplier(np.ldexp(units[name] * lr, point), 40, _MOST)
            vectors = (self._network.weights, self._network.velocity, gradient)
            weight, velocity, change = (self._network.part(name, vector) for vector in vectors)
            key = derive_key(self._seed, self._step, index, 1)
            self._run_numpy(_Part(weight, velocity, change, ends, rate, shift, key))

    def _make_room(self, name: str, gradient: NDArray[np.int64], rates: Reals, lr: float) -> None:
        """Move a parameter's point to where what is about to be computed fits.

        Args:
            name: The parameter.
            gradient: Of all parameters.
            rates: Per row what the gradient 1 moves a weight by.
            lr: Learning rate.
        """
        network, point = self._network, self._network.points[name]
        slopes = np.abs(network.part(name, gradient))
        if len(slopes) == 0:
            return
        with np.errstate(invalid="ignore"):  # a NaN is refused below, like all that is too large
            pushed = float((reduce_rows(np.maximum, slopes, self._counts[name]) * rates).max())
        weight = _largest(network.part(name, network.weights), point)
        velocity = _largest(network.part(name, network.velocity), point + EXTRA)
        moved = pushed + weight * self._weight_decay * lr + velocity * self._momentum
        moved *= _ROUNDED
        if not weight + moved < _FLOAT32:
            raise _too_far(name, moved, weight)
        network.make_room(name, weight + moved, moved)

    def _run_numpy(self, part: _Part) -> None:
        counts = np.diff(part.ends, prepend=0)
        rate, shift = (np.repeat(row, counts).astype(np.int64) for row in (part.rate, part.shift))
        weight, velocity = part.weight.astype(np.int64), part.velocity.astype(np.int64)
        # A rate of more than 15 bits has no shift; what it moves by more than int32 is as far.
        most = np.where(shift > 0, 2**47, _MOST)
        step = shift_right_half_up(np.clip(part.gradient, -most, most) * rate, shift)
        step = step + shift_right_half_up(weight * self._decay, self._decay_shift)
        step = step + shift_right_half_up(velocity * self.momentum, _MOMENTUM_BITS)
        velocity = np.clip(step, -_MOST, _MOST)
        random = random_bits(part.key, np.arange(len(weight), dtype=np.uint32))
        moved = weight - shift_right_stochastic(velocity, EXTRA, random)
        part.velocity[:] = velocity
        part.weight[:] = np.clip(moved, -_MOST, _MOST)


def _too_far(name: str, moved: float, weight: float) -> FleetError:
    return FleetError(
        f"a step moves {name} by up to {moved:.3g}, from up to {weight:.3g}, which float32 "
        "cannot hold; lower lr (--lr)"
    )


def _largest(values: Ints, point: int) -> float:
    """Return the largest magnitude, as a real number."""
    return math.ldexp(max(int(values.max()), -int(values.min())), -point)


class _Part(NamedTuple):
    """One parameter's share of a step."""

    weight: Ints
    velocity: Ints
    gradient: NDArray[np.int64]
    ends: Ints
    rate: Ints
    shift: Ints
    key: int
