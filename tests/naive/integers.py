"""Slow, obvious references for the integer engine's ops: Python integers, one value after another.

Python's integers have no width, so nothing here can overflow, and `//` and `%` round as the
formulas of `fedkit.engine.integer.constants` are written, not as a shift happens to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.constants import Chain, Mix, Read, Requantisation
from fedkit.engine.ops.depth_to_space import DepthToSpace
from fedkit.engine.ops.pool import Pool
from fedkit.engine.ops.put import Put
from fedkit.engine.ops.resize_linear import ResizeLinear
from fedkit.engine.ops.take import Take
from fedkit.engine.plan.conv import Convolution
from tests.naive.kernels import places

Array = NDArray[Any]

CODE, WIDE = 127, 32767


def half_up(value: int, shift: int) -> int:
    """Return value / 2^shift to nearest, halves up."""
    return (2 * value + 2**shift) // (2 * 2**shift)


def half_even(value: int, shift: int) -> int:
    """Return value / 2^shift to nearest, halves to the even neighbour."""
    return round(Fraction(value, 2**shift))


Rounding = Callable[[int, int], int]


def clamp(value: int, limit: int) -> int:
    return min(max(value, -limit), limit)


def random_bits(key: int, counter: int) -> int:
    low, high, word = key % 2**32, key // 2**32, 2**32
    x = counter ^ low
    x = (x ^ x // 2**16) * 0x7FEB352D % word
    x = ((x ^ x // 2**15) + high) * 0x846CA68B % word
    return x ^ x // 2**16


def sign(value: int) -> int:
    return (value > 0) - (value < 0)


# One value of one channel


def read_one(x: int, how: Read, channel: int) -> int:
    value = int(how.a[channel]) * x + int(how.b[channel])
    return min(max(half_up(value, int(how.shift[channel])), how.low), how.high)


def active(x: int, how: Read, channel: int) -> bool:
    value = int(how.a[channel]) * x + int(how.b[channel])
    return bool(how.start[channel] < value < how.end[channel])


def pass_one(g: int, x: int, how: Chain, channel: int, position: int) -> int:
    """Pass a gradient on; position: of the element in its tensor."""
    carried = {"none": 0, "x": x, "sign": sign(x), "hat": x}[how.carrier]
    value = int(how.a[channel]) * g + int(how.b[channel]) * carried + int(how.c[channel])
    one = 2 ** int(how.shift[channel])
    if how.key is None:
        value = half_even(value, int(how.shift[channel]))
    else:
        value = (value + random_bits(how.key, position) % one) // one
    return clamp(value, how.limit) * int(how.factor[channel])


def uncut(g: int, x: int) -> int:
    """Return a gradient; 0 where a norm cut x off."""
    return 0 if abs(x) == CODE else g


def requantise_one(raw: int, how: Requantisation, channel: int) -> int:
    centred = clamp(raw - int(how.centre[channel]), WIDE)
    value = int(how.a[channel]) * centred + int(how.b[channel])
    return clamp(half_up(value, int(how.shift[channel])), CODE)


def mix_one(old: int, new: int, how: Mix, channel: int) -> int:
    value = int(how.a[channel]) * old + int(how.b[channel]) * new
    return clamp(half_even(value, int(how.shift[channel])), WIDE)


# Whole tensors [n, channels, height, width]


def read(x: Array, how: Read) -> Array:
    y = np.zeros(x.shape, np.int64)
    for at in np.ndindex(*x.shape):
        y[at] = read_one(int(x[at]), how, at[1])
    return y


def passed(g: Array, x: Array | None, how: Chain) -> Array:
    y = np.zeros(g.shape, np.int64)
    for position, at in enumerate(np.ndindex(*g.shape)):
        given, code = int(g[at]), 0 if x is None else int(x[at])
        given = given if how.carrier == "none" else uncut(given, code)
        y[at] = pass_one(given, code, how, at[1], position)
    return y


def requantise(raw: Array, how: Requantisation) -> Array:
    x = np.zeros(raw.shape, np.int64)
    for at in np.ndindex(*raw.shape):
        x[at] = requantise_one(int(raw[at]), how, at[1])
    return x


def masked(g: Array, x: Array, how: Read) -> Array:
    """Return a gradient, 0 where its tensor is read as a constant."""
    y = np.zeros(g.shape, np.int64)
    for at in np.ndindex(*g.shape):
        y[at] = int(g[at]) if active(int(x[at]), how, at[1]) else 0
    return y


def unclipped(g: Array, x: Array, how: Read) -> Array:
    """Return a gradient, 0 where what was read of its tensor is clipped; x: what was read."""
    y = g.copy()
    for at in np.ndindex(*g.shape):
        if how.clips and abs(int(x[at])) >= how.high:
            y[at] = 0
    return y


def finish_sums(g: Array, x: Array | None) -> list[list[int]]:
    """Return per channel the sums of g, g * x, the sign of x, and of uncut g and g * x."""
    sums = [[0] * 5 for _ in range(g.shape[1])]
    for at in np.ndindex(*g.shape):
        value, code = int(g[at]), 0 if x is None else int(x[at])
        inner = uncut(value, code)
        parts = (value, value * code, sign(code), inner, inner * code)
        for index, part in enumerate(parts):
            sums[at[1]][index] += part
    return sums


def peaks(values: Array) -> list[int]:
    """Return per channel the largest magnitude."""
    found = [0] * values.shape[1]
    for at in np.ndindex(*values.shape):
        found[at[1]] = max(found[at[1]], abs(int(values[at])))
    return found


def spread(raw: Array, centre: Array) -> list[int]:
    """Return per channel the sum of |raw - centre|."""
    sums = [0] * raw.shape[1]
    for at in np.ndindex(*raw.shape):
        sums[at[1]] += abs(clamp(int(raw[at]) - int(centre[at[1]]), WIDE))
    return sums


def narrowed(sums: Array, shift: Array | int, rounding: Rounding = half_up) -> Array:
    """Return sums of a channel shifted by its number."""
    y = np.zeros(sums.shape, np.int64)
    for at in np.ndindex(*sums.shape):
        y[at] = rounding(int(sums[at]), shift if isinstance(shift, int) else int(shift[at[1]]))
    return y


def mixed(old: Array, new: Array, how: Mix) -> Array:
    y = np.zeros(new.shape, np.int64)
    for at in np.ndindex(*new.shape):
        y[at] = mix_one(int(old[at]), int(new[at]), how, at[1])
    return y


# Layer norms: hat, t and p are [n, channels, height, width]


def layer_size(values: list[int], l1: bool, centred: bool = True) -> int:
    """Return n^2 times the mean absolute deviation of n values, or times their variance."""
    count, total = len(values), sum(values) if centred else 0
    if l1:
        return sum(abs(count * value - total) for value in values)
    return sum((count * value - total) ** 2 for value in values) // count


def normalised(v: Array, multiplier: Array, shift: Array, centred: bool = True) -> Array:
    """Return the normalised values, given what a step of each example's is worth."""
    hat, count = np.zeros(v.shape, np.int64), v[0].size
    for n, example in enumerate(v):
        total = sum(example.ravel().tolist()) if centred else 0
        a, by = int(multiplier[n]), int(shift[n])
        while by > 29:
            a, by = a // 2, by - 1
        centre = total // count
        rest = (2 * a * (total - centre * count) + count) // (2 * count)
        for at in np.ndindex(*example.shape):
            hat[(n, *at)] = clamp(half_up(a * (int(example[at]) - centre) - rest, by), WIDE)
    return hat


def layer_scaled(hat: Array, a: Array, b: Array) -> Array:
    return _by_element(hat, a, b, 15)


def layer_factored(p: Array, factor: Array, hat: Array) -> Array:
    t = _by_element(p, factor, np.zeros_like(factor), 14, half_even)
    return np.where(np.abs(hat) == WIDE, 0, t)


def _by_element(
    values: Array, a: Array, b: Array, shift: int, rounding: Rounding = half_up
) -> Array:
    y = np.zeros(values.shape, np.int64)
    for at in np.ndindex(*values.shape):
        element = int(np.ravel_multi_index(at[1:], values.shape[1:]))
        scaled = int(a[element]) * int(values[at]) + int(b[element])
        y[at] = clamp(rounding(scaled, shift), WIDE)
    return y


def layer_sums(p: Array, t: Array, hat: Array) -> tuple[Array, Array]:
    """Return per element the sums of p * hat and p; per example of t, t * hat and hat's sign."""
    elements = np.zeros((p[0].size, 2), object)
    examples = np.zeros((len(p), 3), object)
    for at in np.ndindex(*p.shape):
        element, x = np.ravel_multi_index(at[1:], p.shape[1:]), int(hat[at])
        elements[element] += (int(p[at]) * x, int(p[at]))
        examples[at[0]] += (int(t[at]), int(t[at]) * x, sign(x))
    return elements, examples


def layer_out(t: Array, hat: Array, how: Chain, block: Array) -> Array:
    """Pass gradients on, each by the numbers of its block."""
    y = np.zeros(t.shape, np.int64)
    for position, at in enumerate(np.ndindex(*t.shape)):
        y[at] = pass_one(int(t[at]), int(hat[at]), how, int(block[at]), position)
    return y


def blocks(x: Array, groups: int) -> Array:
    """Return what is normalised together, [groups * n, channels of a group, height, width]."""
    each = x.shape[1] // groups
    return np.concatenate([x[:, g * each : (g + 1) * each] for g in range(groups)])


def of_blocks(x: Array, groups: int) -> Array:
    """Return what `blocks` was given."""
    return np.concatenate(np.split(x, groups), axis=1)


def places_of(x: Array) -> Array:
    """Return the channels of each place, [height * width * n, channels, 1, 1]."""
    n, channels, height, width = x.shape
    each = [x[:, :, row, column] for row in range(height) for column in range(width)]
    return np.stack(each).reshape(height * width * n, channels, 1, 1)


def of_places(x: Array, plane: tuple[int, ...]) -> Array:
    """Return what `places_of` was given."""
    height, width = plane
    y = np.zeros((len(x) // (height * width), x.shape[1], height, width), x.dtype)
    for number, (row, column) in enumerate(np.ndindex(height, width)):
        y[:, :, row, column] = x[number * len(y) : (number + 1) * len(y), :, 0, 0]
    return y


# Ops: windows by `places`, examples and channels one by one


def convolve(
    op: Convolution, x: Array, weight: Array, bias: Array, plane: tuple[int, ...]
) -> Array:
    """Return the sums of weight [outputs, inputs of a group, ky, kx] times x, plus the bias."""
    outputs, inputs = weight.shape[:2]
    y = np.zeros((len(x), outputs, *plane), np.int64)
    y += bias.astype(np.int64)[:, None, None]
    for (ky, kx, oy, ox, py, px), output in _each(op, x.shape[2:], outputs):
        first = output // (outputs // op.groups) * inputs
        for channel in range(inputs):
            tap = int(weight[output, channel, ky, kx])
            for n in range(len(x)):
                y[n, output, oy, ox] += tap * int(x[n, first + channel, py, px])
    return y


def convolve_backward(op: Convolution, x: Array, weight: Array, p: Array) -> tuple[Array, Array]:
    """Return the sums that x gets of p, and those that the weight gets."""
    outputs, inputs = weight.shape[:2]
    to_x, to_weight = np.zeros(x.shape, np.int64), np.zeros(weight.shape, np.int64)
    for (ky, kx, oy, ox, py, px), output in _each(op, x.shape[2:], outputs):
        first = output // (outputs // op.groups) * inputs
        for channel in range(inputs):
            for n in range(len(x)):
                given = int(p[n, output, oy, ox])
                to_x[n, first + channel, py, px] += given * int(weight[output, channel, ky, kx])
                to_weight[output, channel, ky, kx] += given * int(x[n, first + channel, py, px])
    return to_x, to_weight


def _each(op: Convolution, plane: tuple[int, ...], outputs: int) -> Any:
    for place in places(op, plane, op.dilation):
        for output in range(outputs):
            yield place, output


def pool(op: Pool, x: Array, plane: tuple[int, ...]) -> Array:
    """Return the largest of each window, or its sum."""
    mean = op.operation != "max"
    y = np.full((*x.shape[:2], *plane), 0 if mean else -(2**40), np.int64)
    for _, _, oy, ox, py, px in places(op, x.shape[2:]):
        seen, so_far = x[:, :, py, px], y[:, :, oy, ox]
        y[:, :, oy, ox] = so_far + seen if mean else np.maximum(so_far, seen)
    return y


def pool_backward(op: Pool, x: Array, p: Array) -> Array:
    """Return what each x gets: of a mean all windows' p, of a maximum those it is the first of."""
    sums, left = np.zeros(x.shape, np.int64), p.copy()
    largest = pool(op, x, p.shape[2:])
    for _, _, oy, ox, py, px in places(op, x.shape[2:]):
        for n, channel in np.ndindex(*x.shape[:2]):
            at = n, channel, oy, ox
            if op.operation != "max":
                sums[n, channel, py, px] += int(p[at])
            elif x[n, channel, py, px] == largest[at]:
                sums[n, channel, py, px] += int(left[at])
                left[at] = 0
    return sums


Place = tuple[int, int, int]
"""Channel, row and column."""


def taken_places(op: Take, shape: Sequence[int]) -> Iterator[tuple[Place, Place]]:
    """Yield the place of each value of a result [n, channels, h, w], and where it is taken from."""
    lists = op.from_channels, op.from_rows, op.from_columns
    for at in np.ndindex(*shape[1:]):
        pairs = zip(at, lists, strict=True)
        c, y, x = (place if each is None else each[place] for place, each in pairs)
        if min(y, x) >= 0:  # else a zero
            yield (at[0], at[1], at[2]), (c, y, x)


def take(op: Take, x: Array, shape: Sequence[int]) -> Array:
    """Return what is taken of x."""
    found = np.zeros(shape, np.int64)
    for to, of in taken_places(op, shape):
        for n in range(len(x)):
            found[(n, *to)] = x[(n, *of)]
    return found


def take_backward(op: Take, shape: Sequence[int], p: Array) -> Array:
    """Return the sum of what all places that an element is taken to pass."""
    sums = np.zeros(shape, np.int64)
    for to, of in taken_places(op, p.shape):
        for n in range(len(p)):
            sums[(n, *of)] += int(p[(n, *to)])
    return sums


def affine(x: Array, m: Array, added: Array, shift: Array) -> Array:
    """Return (m * x + added) / 2^shift of each channel, to nearest, within 15 bits."""
    found = np.zeros(x.shape, np.int64)
    for at, value in np.ndenumerate(x):
        sums = int(m[at[1]]) * int(value) + int(added[at[1]])
        found[at] = clamp(half_up(sums, int(shift[at[1]])), WIDE)
    return found


def block_places(op: DepthToSpace, shape: Sequence[int]) -> Iterator[tuple[Place, Place]]:
    """Yield the place of each value of a result, and where in the channels of a pixel it was."""
    (height, width), (top, left) = op.block, op.first
    for c, y, x in np.ndindex(*shape[1:]):
        row, i = divmod(y + top, height)
        column, j = divmod(x + left, width)
        yield (c, y, x), (c * height * width + i * width + j, row, column)


def depth_to_space(op: DepthToSpace, x: Array, bias: Array, shape: Sequence[int]) -> Array:
    """Return the channels of x as places, plus a bias for each that is left, within 15 bits."""
    found = np.zeros(shape, np.int64)
    for to, of in block_places(op, shape):
        for n in range(len(x)):
            found[(n, *to)] = clamp(int(x[(n, *of)]) + int(bias[to[0]]), WIDE)
    return found


def depth_to_space_backward(op: DepthToSpace, shape: Sequence[int], p: Array) -> Array:
    """Return what each channel of a pixel passes, 0 where it is no place."""
    given = np.zeros(shape, np.int64)
    for to, of in block_places(op, p.shape):
        given[(slice(None), *of)] = p[(slice(None), *to)]
    return given


def _shares(place: float, size: int) -> Iterator[tuple[int, int]]:
    """Yield the two neighbours of a place, and how much of each it is, with 14 bits."""
    before = min(int(place), size - 1)
    after = min(before + 1, size - 1)
    part = round((place - before) * 2**14)
    yield before, 2**14 - part
    yield after, part


def resize_shares(
    op: ResizeLinear, shape: Sequence[int]
) -> Iterator[tuple[tuple[int, int], tuple[int, int], int]]:
    """Yield places of a result, of what is read, and how much of that is there, with 28 bits."""
    for (y, row), (x, column) in product(enumerate(op.rows), enumerate(op.columns)):
        for (i, of_row), (j, of_column) in product(
            _shares(row, shape[2]), _shares(column, shape[3])
        ):
            yield (y, x), (i, j), of_row * of_column


def resize(op: ResizeLinear, x: Array) -> Array:
    """Return what lies between the places of x."""
    sums = np.zeros((*x.shape[:2], len(op.rows), len(op.columns)), object)
    for (to_y, to_x), (of_y, of_x), share in resize_shares(op, x.shape):
        sums[:, :, to_y, to_x] += x[:, :, of_y, of_x].astype(object) * share
    return narrowed(sums, 28)


def resize_backward(op: ResizeLinear, shape: Sequence[int], p: Array, shift: int) -> Array:
    """Return what each place gets of all that it is part of."""
    sums = np.zeros(shape, object)
    for (to_y, to_x), (of_y, of_x), share in resize_shares(op, shape):
        sums[:, :, of_y, of_x] += p[:, :, to_y, to_x].astype(object) * share
    return np.clip(narrowed(sums, 28 + shift, half_even), -WIDE, WIDE)


def put(part: Put, whole: Array) -> Array:
    """Return what of a whole lies where a part of it was put."""
    found = np.zeros((len(whole), *part.shape), np.int64)
    for n, c, y, x in np.ndindex(*found.shape):
        steps = c * part.strides[0] + y * part.strides[1] + x * part.strides[2]
        found[n, c, y, x] = whole[n].ravel()[part.start + steps]
    return found


def reordered(x: Array, order: Sequence[int]) -> Array:
    """Return the values of each example with its axes in an order, one after the other."""
    sizes = [x.shape[1 + axis] for axis in order]
    found = [[x[(n, *_unordered(at, order))] for at in np.ndindex(*sizes)] for n in range(len(x))]
    return np.array(found, np.int64)


def _unordered(at: Sequence[int], order: Sequence[int]) -> Place:
    first, second, third = (at[list(order).index(axis)] for axis in range(3))
    return first, second, third


# Loss and optimiser


def cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    """Return the mean loss and the gradients of the examples' losses, in real numbers."""
    loss, gradient = 0.0, np.zeros(logits.shape)
    for n, (row, target) in enumerate(zip(logits.tolist(), targets.tolist(), strict=True)):
        powers = [math.exp(value - max(row)) for value in row]
        loss += math.log(sum(powers)) + max(row) - row[target]
        gradient[n] = [power / sum(powers) for power in powers]
        gradient[n, target] -= 1
    return loss / len(targets), gradient


def sgd(
    weight: int,
    velocity: int,
    gradient: int,
    rate: tuple[int, int],
    decay: tuple[int, int],
    momentum: int,
    extra: int,
    random: int,
) -> tuple[int, int]:
    """Return the next weight and velocity; rate and decay are (multiplier, shift)."""
    most = 2**31 - 1
    step = half_up(gradient * rate[0], rate[1])
    step += half_up(weight * decay[0], decay[1]) + half_up(velocity * momentum, 30)
    velocity = clamp(step, most)
    return clamp(weight - (velocity + random % 2**extra) // 2**extra, most), velocity
