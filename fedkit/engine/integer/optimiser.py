"""Integer SGD with momentum over fixed-point weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from ctypes import c_int32, c_uint32, c_void_p
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.constants import Ints, Reals, multiplier, to_int32
from fedkit.engine.integer.network import IntegerNetwork
from fedkit.engine.sparse.native import Kernels
from fedkit.engine.sparse.plan import LayerNorm
from fedkit.engine.sparse.structs import pointer
from fedkit.numerics import derive_key, random_bits, shift_right_half_up, shift_right_stochastic

EXTRA = 8
"""Bits that velocities have behind those of the weights."""

_MOST = 2**31 - 1


class Sgd:
    """Moves a network's weights: velocity = momentum * velocity + gradient + decay * weight.

    A velocity is kept times the learning rate, in steps of 2^-EXTRA of the weight's, so that it is
    what a weight moves by; the bits it has more are rounded at random. It saturates: a step moves
    no weight by more than 2^(31 - EXTRA) of its steps, an eighth of the power of two above the
    largest weight that was loaded.

    Args:
        network: The weights.
        kernels: The compiled kernels; None: numpy.
        momentum: 0 to 1.
        weight_decay: At least 0.
        seed: Of random rounding.
    """

    def __init__(
        self,
        network: IntegerNetwork,
        kernels: Kernels | None,
        momentum: float,
        weight_decay: float,
        seed: int,
    ) -> None:
        self._network, self._kernels, self._seed, self._step = network, kernels, seed, 0
        self._momentum, self._weight_decay = round(momentum * 2**15), weight_decay
        self._ends = {name: self._rows(name) for name in network.plan.weights}

    def _rows(self, name: str) -> Ints:
        """Return where rows of one unit end in a parameter's kept weights."""
        for number, layer in self._network.layers.items():
            if layer.geometry.op.weight == name:
                return self._network.row_ends(number)
        for op in self._network.plan.ops:
            if isinstance(op, LayerNorm) and name in (op.weight, op.bias):
                channels, *plane = self._network.plan.tensors[op.target].shape
                return to_int32(np.arange(1, channels + 1) * math.prod(plane))
        return to_int32(np.arange(1, len(self._network.part(name, self._network.weights)) + 1))

    def step(self, gradient: NDArray[np.int64], units: Mapping[str, Reals], lr: float) -> None:
        """Move all weights along a gradient.

        Args:
            gradient: int64 [all kept weights].
            units: Per parameter what 1 is worth, per row.
            lr: Learning rate, greater than 0.
        """
        decay, shift = multiplier(np.array([self._weight_decay * lr * 2.0**EXTRA]), 40)
        self._decay, self._decay_shift = int(decay[0]), int(shift[0])
        self._network.parameters.mask_gradient(gradient)
        for index, (name, ends) in enumerate(self._ends.items()):
            if name not in units:
                continue
            point = self._network.points[name] + EXTRA
            rate, shift = multiplier(np.ldexp(units[name] * lr, point), 40, _MOST)
            vectors = (self._network.weights, self._network.velocity, gradient)
            weight, velocity, change = (self._network.part(name, vector) for vector in vectors)
            key = derive_key(self._seed, self._step, index, 1)
            run = self._run_numpy if self._kernels is None else self._run_native
            run(_Part(weight, velocity, change, ends, rate, shift, key))
        self._step += 1

    def _run_native(self, part: _Part) -> None:
        assert self._kernels is not None
        arrays = (part.weight, part.velocity, part.gradient, part.ends)
        self._kernels.int_sgd(
            *(c_void_p(pointer(array)) for array in arrays),
            *(len(part.ends), c_void_p(pointer(part.rate)), c_void_p(pointer(part.shift))),
            *(c_int32(self._decay), self._decay_shift, self._momentum, EXTRA),
            *(c_uint32(part.key & 0xFFFFFFFF), c_uint32(part.key >> 32)),
        )

    def _run_numpy(self, part: _Part) -> None:
        counts = np.diff(part.ends, prepend=0)
        rate, shift = (np.repeat(row, counts).astype(np.int64) for row in (part.rate, part.shift))
        weight, velocity = part.weight.astype(np.int64), part.velocity.astype(np.int64)
        # A rate of more than 15 bits has no shift; what it moves by more than int32 is as far.
        most = np.where(shift > 0, 2**47, _MOST)
        step = shift_right_half_up(np.clip(part.gradient, -most, most) * rate, shift)
        step = step + shift_right_half_up(weight * self._decay, self._decay_shift)
        step = step + shift_right_half_up(velocity * self._momentum, 15)
        velocity = np.clip(step, -_MOST, _MOST)
        random = random_bits(part.key, np.arange(len(weight), dtype=np.uint32))
        moved = weight - shift_right_stochastic(velocity, EXTRA, random)
        part.velocity[:] = velocity
        part.weight[:] = np.clip(moved, -_MOST, _MOST)


class _Part(NamedTuple):
    """One parameter's share of a step."""

    weight: Ints
    velocity: Ints
    gradient: NDArray[np.int64]
    ends: Ints
    rate: Ints
    shift: Ints
    key: int
