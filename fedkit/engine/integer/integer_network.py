"""A plan with integer weights: their fixed-point state, and the codes that layers compute with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import MOST_SHIFT, shift_right_half_even
from fedkit.engine.integer.constants import CLIP, Ints, Reals, to_int32
from fedkit.engine.kernels.network import Layer, check_masks, check_state, layers_of
from fedkit.engine.plan.conv import Convolution
from fedkit.engine.plan.structure import Norm, Plan
from fedkit.sparse.kept import KeptWeights
from fedkit.sparse.rows import reduce_rows
from fedkit.sparse.state import Masks, ModelState

HEADROOM = 5
"""Bits a weight may grow by before its parameter's point moves."""

SMALLEST = 2.0**-40
"""A parameter's point is placed as if its largest weight were at least this; the first step moves
that of one that starts as 0 to where the step fits."""

EXTRA = 8
"""Bits that velocities have behind those of the weights."""

EDGE_BITS = 8
"""Bits of the layers that read the input or write the output."""


@dataclass(frozen=True)
class Codes:
    """One layer's weights as its products take them.

    Attributes:
        values: int16 of the kept weights, in their order.
        scale: Per output channel, what the code 1 is worth, float64.
    """

    values: NDArray[np.int16]
    scale: Reals


class Points(Mapping[str, int]):
    """Bits behind the point by parameter, in memory that kernels read and write."""

    def __init__(self, names: Iterable[str]) -> None:
        self._index = {name: index for index, name in enumerate(names)}
        self._values = np.zeros(len(self._index), np.int32)

    def __getitem__(self, name: str) -> int:
        """Return those of a parameter."""
        return int(self._values[self._index[name]])

    def __setitem__(self, name: str, point: int) -> None:
        """Move a point."""
        self._values[self._index[name]] = point

    def __iter__(self) -> Iterator[str]:
        """Yield the parameters."""
        return iter(self._index)

    def __len__(self) -> int:
        """Return their number."""
        return len(self._index)

    def address(self, name: str) -> int:
        """Return where a parameter's number lies."""
        return int(self._values[self._index[name] :].ctypes.data)


class IntegerNetwork:
    """A plan under masks, with integer weights.

    Args:
        plan: The model.
        masks: Which weights are kept.
        bits: Of the codes of weights, activations and gradients, 2 to 8.
        lanes: Examples of a tile in the kernels that will run it.

    Raises:
        EngineError: The masks do not fit the plan.

    Attributes:
        weights: int32 fixed point, one vector of all parameters, of pruned layers the kept ones.
        velocity: int32, the optimiser's, with `EXTRA` bits more behind the point.
        points: Bits behind the point per parameter; negative where its numbers are that large.
        layers: By number of the op.
    """

    def __init__(self, plan: Plan, masks: Masks, bits: int, lanes: int) -> None:
        check_masks(plan, masks)
        self.plan, self.masks, self.bits, self.lanes = plan, masks, bits, lanes
        self.layers, self.parameters = layers_of(plan, masks, lanes)
        self.weights = np.zeros(len(self.parameters.values), np.int32)
        self.velocity = np.zeros_like(self.weights)
        self.points = Points(plan.weights)
        self.norms: dict[int, Norm] = {
            index: tensor.norm for index, tensor in enumerate(plan.tensors) if tensor.norm
        }
        self._columns = {
            n: self._column_of(layer) for n, layer in self.layers.items() if not layer.dense
        }
        self._rows = {n: self._row_ends(layer) for n, layer in self.layers.items()}
        self._row_counts = {n: np.diff(ends, prepend=0) for n, ends in self._rows.items()}

    def load(self, state: ModelState) -> None:
        """Take over a state's weights, and forget the optimiser's.

        Raises:
            EngineError: They do not fit the plan, or one is NaN or infinite.
        """
        check_state(self.plan, state)
        self.parameters.load(state.weights)
        self.take_values()

    def take_values(self) -> None:
        """Take over `parameters.values`, float32 of the kept weights."""
        self.velocity[:] = 0
        for name in self.plan.weights:
            real = self.part(name, self.parameters.values).astype(np.float64)
            largest = max(np.abs(real).max(initial=0.0), SMALLEST)
            self.points[name] = 31 - HEADROOM - math.frexp(largest)[1]
            self.part(name, self.weights)[:] = np.rint(np.ldexp(real, self.points[name]))

    def make_room(self, name: str, weight: float, velocity: float) -> None:
        """Move a parameter's point until weights and velocities of these magnitudes fit int32.

        What is there is rounded half to even. A point only ever moves to the left, until the next
        `load`: numbers that once were that large are not much finer in float32.
        """
        fits = min(31 - _octave(weight), 31 - EXTRA - _octave(velocity))
        shift = min(self.points[name] - fits, MOST_SHIFT)
        if shift > 0:
            self.points[name] = fits
            for vector in (self.weights, self.velocity):
                part = self.part(name, vector)
                part[:] = shift_right_half_even(part, shift)

    def real(self, name: str) -> Reals:
        """Return a parameter's kept weights as real numbers, flat."""
        whole = self.part(name, self.weights).astype(np.float64)
        return np.ldexp(whole, -self.points[name])

    def state(self) -> KeptWeights:
        """Return the weights, as `Parameters.weights` does."""
        for name in self.plan.weights:
            self.part(name, self.parameters.values)[:] = self.real(name)
        return self.parameters.weights()

    def part(self, name: str, vector: NDArray[Any]) -> NDArray[Any]:
        """Return the view of `vector` that belongs to a parameter."""
        return self.parameters.part(name, vector)

    def layer_bits(self, number: int) -> int:
        """Return the bits of an op's codes: `EDGE_BITS` for those at the input and output."""
        op = self.plan.ops[number]
        at_edge = 0 in op.sources or op.target == self.plan.output
        return EDGE_BITS if at_edge else self.bits

    def row_ends(self, number: int) -> Ints:
        """Return where each output channel's kept weights end, int32 [channels]."""
        return self._rows[number]

    def columns(self, number: int) -> Ints | None:
        """Return the input channel of each kept weight, int32; None: the layer runs dense."""
        return self._columns.get(number)

    def row_sums(self, number: int, sizes: NDArray[np.int16]) -> Reals:
        """Return per output channel the sum of what its kept weights have in `sizes`."""
        if self.layers[number].dense:
            return np.asarray(sizes.reshape(len(self._rows[number]), -1).sum(1, dtype=np.float64))
        sums = np.concatenate([[0.0], np.cumsum(sizes, dtype=np.float64)])
        return np.diff(sums[self._rows[number]], prepend=0.0)

    def column_sums(self, number: int, sizes: NDArray[np.int16], factor: Reals) -> Reals:
        """Return per input channel the sum over its kept weights, each times its row's factor.

        Sizes and factors are integers, so that sums are exact in any order.
        """
        geometry = self.layers[number].geometry
        if self.layers[number].dense:
            sums = np.einsum("r,rt->t", factor, sizes.reshape(len(factor), -1))
            return np.asarray(sums.reshape(geometry.source[0], -1).sum(1))
        weighted = sizes * np.repeat(factor, self._row_counts[number])
        return np.bincount(self._columns[number], weighted, geometry.source[0]).astype(np.float64)

    def codes(self, number: int, least: Reals) -> Codes:
        """Quantise an op's weights: nearest, symmetric, one scale per output channel.

        A channel is clipped where a normal distribution of its spread asks for it, see
        `CLIP`, or at its largest weight if that is nearer. No scale is less than `least`, float64
        [channels]: a channel whose weights are that small computes its bias alone.
        """
        op, bits = self._op(number), self.layer_bits(number)
        whole = self.part(op.weight, self.weights)
        largest, spread = self._row_sizes(number, np.abs(whole.astype(np.float64)))
        most = 2 ** (bits - 1) - 1
        clip = np.minimum(largest, CLIP[bits] * spread)
        # A channel of zeros has codes 0 at any scale; a small one keeps it out of the way.
        positive = clip[clip > 0]
        clip = np.where(clip > 0, clip, positive.min() if positive.size else 1.0)
        clip = np.maximum(clip, np.ldexp(least * most, self.points[op.weight]))
        # In place: memory for another array of this size costs more than the arithmetic.
        codes = np.repeat(clip / most, self._row_counts[number])
        np.divide(whole, codes, out=codes)
        codes += 0.5
        np.floor(codes, out=codes)
        np.minimum(np.maximum(codes, -most, out=codes), most, out=codes)
        return Codes(codes.astype(np.int16), np.ldexp(clip / most, -self.points[op.weight]))

    def _row_sizes(self, number: int, magnitudes: Reals) -> tuple[Reals, Reals]:
        """Return per output channel the largest magnitude and the root of the mean square.

        Zeros do not count: whether pruned weights are listed or not, the result is the same.
        """
        counts = self._row_counts[number]
        largest = reduce_rows(np.maximum, magnitudes, counts)
        squares = reduce_rows(np.add, np.square(magnitudes), counts)
        nonzero = reduce_rows(np.add, (magnitudes > 0).astype(np.float64), counts)
        return largest, np.sqrt(squares / np.maximum(nonzero, 1))

    def _column_of(self, layer: Layer) -> Ints:
        geometry = layer.geometry
        kept = self.parameters.kept[geometry.op.weight]
        output, place = np.divmod(kept, geometry.full_taps)
        group = output // (geometry.target[0] // geometry.op.groups)
        return to_int32(group * geometry.inputs + place // math.prod(geometry.op.kernel))

    def _op(self, number: int) -> Convolution:
        return self.layers[number].geometry.op

    def _row_ends(self, layer: Layer) -> Ints:
        geometry = layer.geometry
        if layer.dense:
            return to_int32(np.arange(1, geometry.target[0] + 1) * geometry.full_taps)
        return layer.forward.first[1:]


def _octave(magnitude: float) -> int:
    """Return the least n with magnitude < 2^n; of 0 one that asks for nothing."""
    return math.frexp(magnitude)[1] if magnitude else -1100


def full_weight(network: IntegerNetwork, number: int, values: NDArray[Any]) -> NDArray[Any]:
    """Return kept values of an op's weight as [outputs, inputs / groups, *kernel], else 0."""
    geometry = network.layers[number].geometry
    shape = (geometry.target[0], geometry.inputs, *geometry.op.kernel)
    kept = network.parameters.kept.get(geometry.op.weight)
    if kept is None:
        return values.reshape(shape)
    full = np.zeros(math.prod(shape), values.dtype)
    full[kept] = values
    return full.reshape(shape)
