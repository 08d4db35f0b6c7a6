"""The integer ops in numpy: the definition of every number, and what runs without a compiler.

Arrays are int64 [n, channels, height, width]; `fedkit.core.numerics` rounds. Products of matrices
go through float64, which is exact below 2^53.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

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
from fedkit.engine.integer.integer_network import Codes, IntegerNetwork, full_weight
from fedkit.engine.integer.layer_norm import (
    FACTOR_SHIFT,
    SCALE_SHIFT,
    Centring,
    Deviation,
    Scale,
    centring_of,
    reciprocal,
    stack,
)
from fedkit.engine.plan.plan import Add, Conv, Copy, LayerNorm, Pool

Array = NDArray[np.int64]


class NumpyBackend:
    """Implements `fedkit.engine.integer.backend.Backend`.

    Args:
        network: The model and its weights.
    """

    def __init__(self, network: IntegerNetwork) -> None:
        self._network, self._plan = network, network.plan
        self._raw: dict[int, Array] = {}
        self._x: dict[int, Array] = {}
        self._g: dict[int, Array] = {}
        self._weights: dict[int, Array] = {}
        self._centrings: dict[int, Centring] = {}
        self._examples = 0

    def begin(self, examples: int) -> None:
        """See `Backend`."""
        self._examples = examples
        for kept in (self._raw, self._x, self._g):
            kept.clear()

    def load(self, inputs: NDArray[np.int8], order: NDArray[np.int64]) -> None:
        """See `Backend`."""
        shape = (len(order), *self._plan.tensors[0].shape)
        self._x[0] = inputs[order].astype(np.int64).reshape(shape)

    # Forward

    def conv_forward(self, number: int, read: Read, codes: Codes, bias: Ints, shift: Ints) -> None:
        """See `Backend`."""
        op = self._conv(number)
        self._weights[number] = full_weight(self._network, number, codes.values).astype(np.int64)
        x, sums = self._read(op.source, read), np.asarray(_across(bias))
        for y_x, weight in _taps(op, self._weights[number]):
            sums = sums + _product(op.groups, weight, _window(op, x, y_x, self._plane(op.target)))
        self._raw[op.target] = shift_right_half_up(sums, _across(shift))

    def add_forward(self, number: int, left: Read, right: Read) -> None:
        """See `Backend`."""
        op = self._plan.ops[number]
        assert isinstance(op, Add)
        self._raw[op.target] = self._read(op.left, left) + self._read(op.right, right)

    def copy_forward(self, number: int, read: Read) -> None:
        """See `Backend`."""
        op = self._plan.ops[number]
        assert isinstance(op, Copy)
        shape = (self._examples, *self._plan.tensors[op.target].shape)
        raw = self._raw.setdefault(op.target, np.zeros(shape, np.int64))
        values = self._read(op.source, read).reshape(self._examples, -1, *shape[2:])
        raw[:, op.channel : op.channel + values.shape[1]] = values

    def pool_forward(self, number: int, read: Read, shift: int) -> None:
        """See `Backend`."""
        op = self._pool(number)
        windows = self._windows(op, self._read(op.source, read))
        if op.operation == "max":
            self._raw[op.target] = windows.max(0)
        else:
            sums = np.where(windows == _OUTSIDE, 0, windows).sum(0)
            self._raw[op.target] = shift_right_half_up(sums, shift)

    def layer_forward(
        self, number: int, read: Read, how: Deviation, scale: Scale
    ) -> tuple[Ints, Ints]:
        """See `Backend`."""
        op = self._layer(number)
        v = self._read(op.source, read).reshape(self._examples, -1)
        count, totals = v.shape[1], v.sum(1)
        if how.l1:
            sizes = np.abs(count * v - totals[:, None]).sum(1)
        else:
            sizes = count * np.square(v).sum(1) - np.square(totals)
        found = [reciprocal(size, how) for size in sizes.tolist()]
        rows = zip(totals.tolist(), found, strict=True)
        self._centrings[number] = Centring(
            *stack([centring_of(total, *inverse, count) for total, inverse in rows])
        )
        hat = self._hat(number, read)
        y = _elements(scale.a, hat) * hat + _elements(scale.b, hat)
        self._raw[op.target] = np.clip(shift_right_half_up(y, SCALE_SHIFT), -WIDE, WIDE)
        multiplier, shift = stack(found)
        return multiplier, shift

    def raw_sums(self, tensor: int) -> tuple[Array, Ints]:
        """See `Backend`."""
        raw = self._raw[tensor]
        return raw.sum((0, 2, 3)), np.abs(raw).max((0, 2, 3)).astype(np.int32)

    def raw_squares(self, tensor: int) -> tuple[Array, Array]:
        """See `Backend`."""
        raw = self._raw[tensor]
        return raw.sum((0, 2, 3)), np.square(raw).sum((0, 2, 3))

    def raw_spread(self, tensor: int, centre: Ints) -> Array:
        """See `Backend`."""
        return np.asarray(np.abs(self._centred(tensor, centre)).sum((0, 2, 3)))

    def requantise(self, tensor: int, how: Requantisation) -> None:
        """See `Backend`."""
        scaled = _across(how.a) * self._centred(tensor, how.centre) + _across(how.b)
        self._x[tensor] = np.clip(shift_right_half_up(scaled, _across(how.shift)), -CODE, CODE)

    def read_squares(self, tensor: int, read: Read) -> Array:
        """See `Backend`."""
        return np.asarray(np.square(self._read(tensor, read)).sum((0, 2, 3)))

    def raw_rows(self, tensor: int) -> NDArray[np.int16]:
        """See `Backend`."""
        return self._raw[tensor].astype(np.int16)

    def codes(self, tensor: int) -> NDArray[np.int8]:
        """See `Backend`."""
        return self._x[tensor].astype(np.int8)

    # Backward

    def set_gradient(self, tensor: int, gradient: NDArray[np.int16]) -> None:
        """See `Backend`."""
        self._g[tensor] = gradient.astype(np.int64)

    def share_gradient(self, tensor: int, source: int) -> None:
        """See `Backend`."""
        self._g[source] = self._g[tensor]

    def finish(self, tensor: int, read: Read | None) -> tuple[Array, Ints]:
        """See `Backend`."""
        g, x = self._g[tensor], self._x.get(tensor)
        if x is None:
            x = np.zeros_like(g)
        if read is not None:
            y = _across(read.a) * x + _across(read.b)
            g = np.where((y > _across(read.start)) & (y < _across(read.end)), g, 0)
        self._g[tensor] = g
        inner = _uncut(g, x)
        parts = (g, g * x, np.sign(x), inner, inner * x)
        sums = [np.asarray(part.sum((0, 2, 3))) for part in parts]
        return np.stack(sums, 1), np.abs(g).max((0, 2, 3)).astype(np.int32)

    def passed_peak(self, tensor: int, chain: Chain) -> Ints:
        """See `Backend`."""
        return to_int32(np.abs(self._passed(tensor, chain)).max((0, 2, 3)))

    def conv_backward(
        self,
        number: int,
        read: Read,
        chain: Chain,
        shift: Ints,
        mix: Mix | None,
        source: bool,
    ) -> tuple[Array, Array]:
        """See `Backend`."""
        op = self._conv(number)
        x, p = self._read(op.source, read), self._passed(op.target, chain)
        weights = self._weights[number]
        gradient, plane = np.zeros_like(weights), self._plane(op.target)
        padded = np.zeros_like(_padded(op, x))
        for (ky, kx), weight in _taps(op, weights):
            seen = _window(op, x, (ky, kx), plane)
            gradient[:, :, ky, kx] = _outer(op.groups, p, seen)
            _window(op, padded, (ky, kx), plane, pad=False)[...] += _transposed(
                op.groups, weight, p
            )
        if source:
            (top, left), (height, width) = op.padding, x.shape[2:]
            sums = padded[:, :, top : top + height, left : left + width]
            given = shift_right_half_even(sums, _across(shift))
            if read.clips:
                given = np.where(np.abs(x) < read.high, given, 0)
            self._put(op.source, given, mix)
        kept = self._network.parameters.kept.get(op.weight)
        flat = gradient.reshape(-1)
        return flat if kept is None else flat[kept], p.sum((0, 2, 3))

    def copy_backward(
        self, number: int, source: int, chain: Chain, channel: int, mix: Mix | None
    ) -> None:
        """See `Backend`."""
        target, shape = self._plan.ops[number].target, self._plan.tensors[source].shape
        passed = self._passed(target, chain)
        count = int(np.prod(shape)) // int(np.prod(passed.shape[2:]))
        taken = passed[:, channel : channel + count]
        self._put(source, taken.reshape(self._examples, *shape), mix)

    def pool_backward(
        self, number: int, read: Read, chain: Chain, shift: int, mix: Mix | None
    ) -> None:
        """See `Backend`."""
        op = self._pool(number)
        x, p = self._read(op.source, read), self._passed(op.target, chain)
        sums = np.zeros_like(_padded(op, x))
        best = self._windows(op, x).argmax(0)
        taps = list(np.ndindex(*op.kernel))
        for index, tap in enumerate(taps):
            given = np.where(best == index, p, 0) if op.operation == "max" else p
            _window(op, sums, tap, p.shape[2:], pad=False)[...] += given
        (top, left), (height, width) = op.padding, x.shape[2:]
        inside = sums[:, :, top : top + height, left : left + width]
        self._put(op.source, shift_right_half_even(inside, shift), mix)

    def layer_sums(
        self, number: int, read: Read, chain: Chain, factor: Ints
    ) -> tuple[Array, Array, Ints]:
        """See `Backend`."""
        op, hat = self._layer(number), self._hat(number, read)
        p, t = self._passed(op.target, chain), self._factored(number, chain, factor, hat)
        per_element = [(p * hat).sum(0).ravel(), p.sum(0).ravel()]
        per_example = [part.sum((1, 2, 3)) for part in (t, t * hat, np.sign(hat))]
        peak = to_int32(np.abs(t).max((1, 2, 3)))
        return np.stack(per_element, 1), np.stack(per_example, 1), peak

    def layer_backward(
        self, number: int, read: Read, chain: Chain, factor: Ints, out: Chain, mix: Mix | None
    ) -> None:
        """See `Backend`."""
        hat = self._hat(number, read)
        t = self._factored(number, chain, factor, hat)
        carried = np.sign(hat) if out.carrier == "sign" else hat
        new = _passed(t, carried, out, _along)
        self._put(self._layer(number).source, new, mix)

    # Parts

    def _layer(self, number: int) -> LayerNorm:
        op = self._plan.ops[number]
        assert isinstance(op, LayerNorm)
        return op

    def _hat(self, number: int, read: Read) -> Array:
        """Return the normalised values, [n, channels, height, width]."""
        how = self._centrings[number]
        centred = self._read(self._layer(number).source, read) - _along(how.centre)
        scaled = _along(how.a) * centred + _along(how.b)
        return np.clip(shift_right_half_up(scaled, _along(how.shift)), -WIDE, WIDE)

    def _factored(self, number: int, chain: Chain, factor: Ints, hat: Array) -> Array:
        """Return the gradient of the normalised values, 0 where they were cut off."""
        p = self._passed(self._layer(number).target, chain)
        t = np.clip(shift_right_half_even(_elements(factor, p) * p, FACTOR_SHIFT), -WIDE, WIDE)
        return np.where(np.abs(hat) < WIDE, t, 0)

    def _conv(self, number: int) -> Conv:
        op = self._plan.ops[number]
        assert isinstance(op, Conv)
        return op

    def _pool(self, number: int) -> Pool:
        op = self._plan.ops[number]
        assert isinstance(op, Pool)
        return op

    def _plane(self, tensor: int) -> tuple[int, ...]:
        return self._plan.tensors[tensor].shape[1:]

    def _read(self, tensor: int, read: Read) -> Array:
        y = _across(read.a) * self._x[tensor] + _across(read.b)
        return np.clip(shift_right_half_up(y, _across(read.shift)), read.low, read.high)

    def _centred(self, tensor: int, centre: Ints) -> Array:
        return np.clip(self._raw[tensor] - _across(centre), -WIDE, WIDE)

    def _passed(self, tensor: int, chain: Chain) -> Array:
        if chain.carrier == "none":
            return _passed(self._g[tensor], None, chain, _across)
        x = self._x[tensor]
        carried = x if chain.carrier == "x" else np.sign(x)
        return _passed(_uncut(self._g[tensor], x), carried, chain, _across)

    def _put(self, tensor: int, new: Array, mix: Mix | None) -> None:
        if mix is not None:
            total = _across(mix.a) * self._g[tensor] + _across(mix.b) * new
            new = np.clip(shift_right_half_even(total, _across(mix.shift)), -WIDE, WIDE)
        self._g[tensor] = new

    def _windows(self, op: Pool, x: Array) -> Array:
        """Return what each window sees, [taps, n, channels, height, width]."""
        padded = _padded(op, x, _OUTSIDE)
        plane = self._plane(op.target)
        return np.stack([_window(op, padded, t, plane, pad=False) for t in np.ndindex(*op.kernel)])


_OUTSIDE = -(2**40)


def _uncut(g: Array, x: Array) -> Array:
    """Return gradients with 0 where a norm cut a value off."""
    return np.where(np.abs(x) < CODE, g, 0)


def _across(values: NDArray[Any]) -> Array:
    return values.astype(np.int64)[:, None, None]


def _along(values: NDArray[Any]) -> Array:
    return values.astype(np.int64)[:, None, None, None]


def _elements(values: NDArray[Any], like: Array) -> Array:
    return values.astype(np.int64).reshape(like.shape[1:])


def _passed(
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


def _padded(op: Conv | Pool, x: Array, value: int = 0) -> Array:
    (top, left) = op.padding
    return np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)), constant_values=value)


def _window(
    op: Conv | Pool, x: Array, tap: tuple[int, ...], plane: tuple[int, ...], pad: bool = True
) -> Array:
    """Return a view of what one tap of the kernel meets, [n, channels, *plane]."""
    x = _padded(op, x) if pad else x
    dilation = op.dilation if isinstance(op, Conv) else (1, 1)
    cuts = []
    for axis in (0, 1):
        start = tap[axis] * dilation[axis]
        cuts.append(slice(start, start + (plane[axis] - 1) * op.stride[axis] + 1, op.stride[axis]))
    return x[:, :, cuts[0], cuts[1]]


def _taps(op: Conv, weights: Array) -> Iterator[tuple[tuple[int, int], Array]]:
    for ky, kx in np.ndindex(*op.kernel):
        yield (ky, kx), weights[:, :, ky, kx]


def _grouped(groups: int, x: Array) -> NDArray[np.float64]:
    """Return [groups, channels of a group, n * height * width]."""
    by_channel = x.astype(np.float64).transpose(1, 0, 2, 3)
    return by_channel.reshape(groups, x.shape[1] // groups, -1)


def _ungrouped(found: NDArray[np.float64], like: Array) -> Array:
    n, _, height, width = like.shape
    return found.astype(np.int64).reshape(-1, n, height, width).transpose(1, 0, 2, 3)


def _product(groups: int, weight: Array, x: Array) -> Array:
    """Return weight [outputs, inputs of a group] times x, per group."""
    split = weight.astype(np.float64).reshape(groups, -1, weight.shape[1])
    return _ungrouped(split @ _grouped(groups, x), x)


def _transposed(groups: int, weight: Array, p: Array) -> Array:
    split = weight.astype(np.float64).reshape(groups, -1, weight.shape[1])
    return _ungrouped(split.transpose(0, 2, 1) @ _grouped(groups, p), p)


def _outer(groups: int, p: Array, x: Array) -> Array:
    """Return the sum of p times x over examples and pixels, [outputs, inputs of a group]."""
    found = _grouped(groups, p) @ _grouped(groups, x).transpose(0, 2, 1)
    return found.astype(np.int64).reshape(p.shape[1], -1)
