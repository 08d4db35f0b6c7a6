"""Values in another arrangement: a chain of views, transposes and slices, tried as a whole.

A model says `view`, `transpose`, `reshape` to shuffle channels, with five dimensions between that
the graph does not have. What counts is where each element lies in the end: that is known by moving
numbers, and becomes the fewest ops that do the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedkit.graph import ir
from fedkit.graph.elements import Moved, Numbers
from fedkit.graph.layouts import RANKS, order_is_free
from fedkit.graph.operands import Unsupported, require
from fedkit.graph.ops.transpose import Order
from fedkit.graph.places import Places, listed, sizes_of, taken_shape
from fedkit.graph.spec import ModelReader

_AXES = 3
_STAY: Order = Order((1, 2, 3))


class Step(NamedTuple):
    """An op, and the shape that it gives."""

    kind: ir.Kind
    shape: ir.Shape
    attributes: ir.Attributes | None = None


def arrange(reader: ModelReader, node: Any, moved: Moved, suffix: str = "") -> ir.Tensor:
    """Add the ops that arrange a value; none if it is its base.

    Args:
        reader: What reads the model.
        node: The node that gives the value.
        moved: [channels, height, width], [channels, length] or [features].
        suffix: Of the name for the result.

    Raises:
        Unsupported: As for `steps_of`.
    """
    x, steps = moved.base, steps_of(moved)
    for number, step in enumerate(steps, start=1):
        end = "" if number == len(steps) else f".part{number}"
        x = reader.op(
            step.kind, node, [x], step.shape, suffix=f"{suffix}{end}", attributes=step.attributes
        )
    return x


def steps_of(moved: Moved) -> list[Step]:
    """Return the ops that arrange a value.

    Raises:
        Unsupported: Neither lists of places along each axis nor a swap of at most three parts is
            what was done.
    """
    shape = moved.base.shape
    numbers = np.asarray(ir.to_graph_layout(moved.numbers[None]), np.int64)
    if (lists := _as_lists(shape, numbers)) is not None:
        return _taking(shape, lists)
    if (lists := _as_lists(shape, _unflattened(shape, numbers))) is not None:
        steps = _taking(shape, lists)
        return [*steps, *_reordering(shape, _flat(shape))]
    if (used := _used(shape, numbers)) is not None:
        lists, numbers = used
        steps = _taking(shape, lists)
        return [*steps, *_reordering(steps[-1].shape, numbers)]
    return _reordering(shape, numbers)


def plain(moved: Moved) -> ir.Tensor | Moved:
    """Return the value that it is elements of, if all are where they were."""
    is_known = 1 + moved.numbers.ndim in RANKS and can_be(moved)
    return moved.base if is_known and not steps_of(moved) else moved


def can_be(moved: Moved) -> bool:
    """Whether there are ops that arrange a value."""
    try:
        steps_of(moved)
    except Unsupported:
        return False
    return True


_TANGLED = (
    "a chain of moves whose result is neither a list of places along each axis nor a swap of three "
    "parts; fewer moves at once can be"
)
_Lists = Mapping[int, Sequence[int]]
"""Dimension of [n, c, h, w] -> places."""


# Lists of places


def _taking(shape: ir.Shape, lists: _Lists) -> list[Step]:
    places = listed(shape, lists)
    return [] if places == Places() else [Step("take", taken_shape(shape, places), places)]


def _as_lists(shape: ir.Shape, numbers: Numbers) -> _Lists | None:
    """Return the places that a value of as many dimensions takes along each axis, if it does."""
    if numbers.ndim != len(shape):
        return None
    at = numbers.reshape(sizes_of(numbers.shape))
    rows, columns, channels = np.unravel_index(at, sizes_of(shape))
    lists = rows[:, 0, 0], columns[0, :, 0], channels[0, 0, :]
    found = np.ravel_multi_index(np.ix_(*lists), sizes_of(shape))
    if not np.array_equal(found, at):
        return None
    return {axis: each.tolist() for axis, each in zip((2, 3, 1), lists, strict=True)}


def _unflattened(shape: ir.Shape, numbers: Numbers) -> Numbers:
    """Return numbers of features as those of a map of a shape, if there are as many."""
    if numbers.ndim != 2 or len(shape) != 1 + _AXES or numbers.size != math.prod(shape):
        return numbers
    _, height, width, channels = shape
    return np.moveaxis(numbers.reshape(1, channels, height, width), 1, 3)


def _used(shape: ir.Shape, numbers: Numbers) -> tuple[_Lists, Numbers] | None:
    """Return the places that are read along each axis, and the numbers among those, if not all."""
    places = np.unravel_index(numbers, sizes_of(shape))
    lists = [np.unique(each) for each in places]
    sizes = [len(each) for each in lists]
    if math.prod(sizes) == math.prod(shape):
        return None
    found = [np.searchsorted(each, place) for each, place in zip(lists, places, strict=True)]
    again = np.asarray(np.ravel_multi_index(found, sizes), np.int64)
    return {axis: each.tolist() for axis, each in zip((2, 3, 1), lists, strict=True)}, again


# The same elements in another order


class _Swap(NamedTuple):
    """A reshape to `before`, a swap of its axes, and a reshape of what comes of that, `after`."""

    before: ir.Shape
    order: Order
    after: ir.Shape


def _reordering(shape: ir.Shape, numbers: Numbers) -> list[Step]:
    """Return at most a reshape, a swap of axes and a reshape."""
    is_all = numbers.size == math.prod(shape)
    require(is_all and _is_counted(np.sort(numbers, axis=None)), _TANGLED)
    if numbers.ndim == 2 and not order_is_free(shape) and (numbers == _flat(shape)).all():
        return [Step("flatten_nchw", numbers.shape)]
    try:
        return _swapping(shape, numbers)
    except Unsupported:
        return _by_channels(shape, numbers)


def _swapping(shape: ir.Shape, numbers: Numbers) -> list[Step]:
    swap = _swap(shape, numbers)
    steps = [Step("reshape", swap.before)] if swap.before != shape else []
    if swap.order != _STAY:
        steps.append(Step("transpose", swap.after, swap.order))
    return [*steps, Step("reshape", numbers.shape)] if swap.after != numbers.shape else steps


def _by_channels(shape: ir.Shape, numbers: Numbers) -> list[Step]:
    """Return what reorders values that are laid channel by channel, as torch has them."""
    steps, between, after = list[Step](), shape, numbers
    if len(shape) == 1 + _AXES:
        between = ir.from_graph_layout(np.empty(shape)).shape
        steps.append(Step("transpose", between, Order((3, 1, 2))))
        after = np.argsort(_flat(shape)[0])[numbers]
    last = ir.from_graph_layout(after)
    steps += _swapping(between, last)
    if last.ndim == 1 + _AXES:
        steps.append(Step("transpose", numbers.shape, Order((2, 3, 1))))
    return steps


def _flat(shape: ir.Shape) -> Numbers:
    """Return the numbers [1, all] of a map in the order in which torch flattens it."""
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return np.asarray(ir.from_graph_layout(numbers).reshape(1, -1), np.int64)


def _is_counted(numbers: Numbers) -> bool:
    return np.array_equal(numbers.ravel(), np.arange(numbers.size))


def _swap(shape: ir.Shape, numbers: Numbers) -> _Swap:
    """Return a swap that gives numbers in an order; of several that with the fewest ops."""
    if _is_counted(numbers):
        return _Swap(shape, _STAY, shape)
    ways = [way for way in (_of_axes(shape, numbers), _to_axes(numbers)) if way is not None]
    ops = [(way.before != shape) + (way.after != numbers.shape) for way in ways]
    return ways[int(np.argmin(ops))] if ways else _of_parts(numbers)


def _orders() -> list[tuple[int, int, int]]:
    return [(a, b, c) for a, b, c in itertools.permutations((1, 2, 3))]


def _of_axes(shape: ir.Shape, numbers: Numbers) -> _Swap | None:
    """Return the swap of the axes that there are, if it gives the numbers in order."""
    if len(shape) != 1 + _AXES:
        return None
    values = np.arange(numbers.size).reshape(shape)
    for axes in _orders():
        swapped = values.transpose(0, *axes)
        if np.array_equal(swapped.ravel(), numbers.ravel()):
            return _Swap(shape, Order(axes), swapped.shape)
    return None


def _to_axes(numbers: Numbers) -> _Swap | None:
    """Return the swap that gives the axes of the result, if the numbers are in order before it."""
    if numbers.ndim != 1 + _AXES:
        return None
    for axes in _orders():
        before = numbers.transpose(0, *(1 + axes.index(axis) for axis in (1, 2, 3)))
        if _is_counted(before):
            return _Swap(before.shape, Order(axes), numbers.shape)
    return None


def _of_parts(numbers: Numbers) -> _Swap:
    """Return a swap of parts that are no axes."""
    parts = _parts(numbers.ravel())
    require(len(parts) <= _AXES, _TANGLED)
    parts = [*[(1, numbers.size)] * (_AXES - len(parts)), *parts]
    by_step = sorted(range(_AXES), key=lambda place: -parts[place][1])
    a, b, c = (1 + by_step.index(place) for place in range(_AXES))
    before = (1, *(parts[place][0] for place in by_step))
    return _Swap(before, Order((a, b, c)), (1, *(length for length, _ in parts)))


def _parts(flat: Numbers) -> list[tuple[int, int]]:
    """Return (length, step) of the parts that numbers count through, the last fastest.

    Raises:
        Unsupported: They do not count so.
    """
    found: list[tuple[int, int]] = []
    left = flat
    while len(left) > 1:
        step = int(left[1] - left[0])
        breaks = np.flatnonzero(np.diff(left) != step)
        length = int(breaks[0]) + 1 if len(breaks) else len(left)
        found.insert(0, (length, step))
        require(len(left) % length == 0, _TANGLED)
        left = left[::length]
    lengths = [length for length, _ in found]
    places = np.indices(lengths).reshape(len(lengths), -1)
    counted = sum(step * place for (_, step), place in zip(found, places, strict=True))
    require(np.array_equal(counted, flat), _TANGLED)
    return found
