"""The integer ops in numpy: the definition of every number, and what runs without a compiler.

Arrays are int64 [n, channels, height, width]; `fedkit.core.numerics` rounds. Products of matrices
go through float64, which is exact below 2^53.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import (
    random_bits,
    shift_right_half_even,
    shift_right_half_up,
    shift_right_stochastic,
)
from fedkit.engine.integer.constants import (
    CODE,
    WIDE,
    Chain,
    Ints,
    Mix,
    Read,
    Requantisation,
    to_int32,
)
from fedkit.engine.integer.integer_network import IntegerNetwork
from fedkit.engine.plan.structure import Pair, PlanOp
from fedkit.engine.plan.windows import Sliding

Array = NDArray[np.int64]
AnyOp = TypeVar("AnyOp", bound=PlanOp)


class NumpyBackend:
    """Implements `fedkit.engine.integer.backend.Backend`.

    Args:
        network: The model and its weights.

    Attributes:
        raw: What ops write, by tensor.
        x: What is stored, by tensor.
        g: Gradients, by tensor.
        examples: Of the batch.
    """

    def __init__(self, network: IntegerNetwork) -> None:
        self.network, self.plan = network, network.plan
        self.raw: dict[int, Array] = {}
        self.x: dict[int, Array] = {}
        self.g: dict[int, Array] = {}
        self.examples = 0

    def ready(self) -> None:
        """See `Backend`."""

    def begin(self, examples: int) -> None:
        """See `Backend`."""
        self.examples = examples
        for kept in (self.raw, self.x, self.g):
            kept.clear()

    def load(self, inputs: NDArray[np.int8], order: NDArray[np.int64]) -> None:
        """See `Backend`."""
        shape = (len(order), *self.plan.tensors[0].shape)
        self.x[0] = inputs[order].astype(np.int64).reshape(shape)

    # Forward

    def raw_sums(self, tensor: int) -> tuple[Array, Ints]:
        """See `Backend`."""
        raw = self.raw[tensor]
        return raw.sum((0, 2, 3)), np.abs(raw).max((0, 2, 3)).astype(np.int32)

    def raw_squares(self, tensor: int) -> tuple[Array, Array]:
        """See `Backend`."""
        raw = self.raw[tensor]
        return raw.sum((0, 2, 3)), np.square(raw).sum((0, 2, 3))

    def raw_spread(self, tensor: int, centre: Ints) -> Array:
        """See `Backend`."""
        return np.asarray(np.abs(self._centred(tensor, centre)).sum((0, 2, 3)))

    def requantise(self, tensor: int, how: Requantisation) -> None:
        """See `Backend`."""
        scaled = across(how.a) * self._centred(tensor, how.centre) + across(how.b)
        self.x[tensor] = np.clip(shift_right_half_up(scaled, across(how.shift)), -CODE, CODE)

    def read_squares(self, tensor: int, read: Read) -> Array:
        """See `Backend`."""
        return np.asarray(np.square(self.read(tensor, read)).sum((0, 2, 3)))

    def raw_rows(self, tensor: int) -> NDArray[np.int16]:
        """See `Backend`."""
        return self.raw[tensor].astype(np.int16)

    def codes(self, tensor: int) -> NDArray[np.int8]:
        """See `Backend`."""
        return self.x[tensor].astype(np.int8)

    # Backward

    def set_gradient(self, tensor: int, gradient: NDArray[np.int16]) -> None:
        """See `Backend`."""
        self.g[tensor] = gradient.astype(np.int64)

    def share_gradient(self, tensor: int, source: int) -> None:
        """See `Backend`."""
        self.g[source] = self.g[tensor]

    def finish(self, tensor: int, read: Read | None) -> tuple[Array, Ints]:
        """See `Backend`."""
        g, x = self.g[tensor], self.x.get(tensor)
        if x is None:
            x = np.zeros_like(g)
        if read is not None:
            y = across(read.a) * x + across(read.b)
            g = np.where((y > across(read.start)) & (y < across(read.end)), g, 0)
        self.g[tensor] = g
        inner = uncut(g, x)
        parts = (g, g * x, np.sign(x), inner, inner * x)
        sums = [np.asarray(part.sum((0, 2, 3))) for part in parts]
        return np.stack(sums, 1), np.abs(g).max((0, 2, 3)).astype(np.int32)

    def passed_peak(self, tensor: int, chain: Chain) -> Ints:
        """See `Backend`."""
        return to_int32(np.abs(self.passed(tensor, chain)).max((0, 2, 3)))

    # Parts

    def plane(self, tensor: int) -> tuple[int, ...]:
        """Return (height, width) of a tensor."""
        return self.plan.tensors[tensor].shape[1:]

    def read(self, tensor: int, read: Read) -> Array:
        """Return what is read of a tensor."""
        y = across(read.a) * self.x[tensor] + across(read.b)
        return np.clip(shift_right_half_up(y, across(read.shift)), read.low, read.high)

    def _centred(self, tensor: int, centre: Ints) -> Array:
        return np.clip(self.raw[tensor] - across(centre), -WIDE, WIDE)

    def passed(self, tensor: int, chain: Chain) -> Array:
        """Return how a tensor's gradient passes."""
        if chain.carrier == "none":
            return pass_through(self.g[tensor], None, chain, across)
        x = self.x[tensor]
        carried = x if chain.carrier == "x" else np.sign(x)
        return pass_through(uncut(self.g[tensor], x), carried, chain, across)

    def put(self, tensor: int, new: Array, mix: Mix | None) -> None:
        """Write a gradient of a tensor, or add it to what it holds."""
        if mix is not None:
            total = across(mix.a) * self.g[tensor] + across(mix.b) * new
            new = np.clip(shift_right_half_even(total, across(mix.shift)), -WIDE, WIDE)
        self.g[tensor] = new


class NumpyOp(Generic[AnyOp]):
    """A base of what computes one op in numpy.

    Args:
        op: The op.
        number: Its number in the plan.
        backend: Holds the tensors.
    """

    def __init__(self, op: AnyOp, number: int, backend: NumpyBackend) -> None:
        self.op, self.number, self.backend = op, number, backend


def uncut(g: Array, x: Array) -> Array:
    """Return gradients with 0 where a norm cut a value off."""
    return np.where(np.abs(x) < CODE, g, 0)


def across(values: NDArray[Any]) -> Array:
    """Return values per channel along the second axis."""
    return values.astype(np.int64)[:, None, None]


def pass_through(
    g: Array, carried: Array | None, chain: Chain, spread: Callable[[NDArray[Any]], Array]
) -> Array:
    """Pass gradients; `spread` gives the chain's arrays the axes of g."""
    y = spread(chain.a) * g + spread(chain.c)
    if carried is not None:
        y = y + spread(chain.b) * carried
    shift = np.broadcast_to(spread(chain.shift), y.shape)
    if chain.key is None:
        y = shift_right_half_even(y, shift)
    else:
        counters = np.arange(y.size, dtype=np.uint32).reshape(y.shape)
        y = shift_right_stochastic(y, shift, random_bits(chain.key, counters))
    return np.clip(y, -chain.limit, chain.limit) * spread(chain.factor)


def padded(op: Sliding, x: Array, value: int = 0) -> Array:
    """Return x in a frame."""
    (top, left) = op.padding
    return np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)), constant_values=value)


def window(
    op: Sliding, x: Array, tap: tuple[int, ...], plane: tuple[int, ...], dilation: Pair = (1, 1)
) -> Array:
    """Return a view of what one tap of the kernel meets in padded x, [n, channels, *plane]."""
    cuts = []
    for axis in (0, 1):
        start = tap[axis] * dilation[axis]
        cuts.append(slice(start, start + (plane[axis] - 1) * op.stride[axis] + 1, op.stride[axis]))
    return x[:, :, cuts[0], cuts[1]]
