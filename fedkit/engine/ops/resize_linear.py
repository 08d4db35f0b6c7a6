"""Linear resizes: each place of the result lies between two rows and two columns of a map."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import shift_right_half_even, shift_right_half_up
from fedkit.engine.integer.constants import WIDE, Chain, Mix, Read, shift_to_fit
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.numpy_backend import NumpyOp
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import OneSourceOp, Plan, Shape
from fedkit.engine.sparse.float_op import Floats, NumpyFloatOp, Workspace
from fedkit.graph import ir
from fedkit.graph.linear import between
from fedkit.graph.ops.resize import coordinates_of

_POINT = 14
"""Bits behind the point of a distance, in integers."""


@dataclass(frozen=True)
class ResizeLinear(OneSourceOp):
    """target[c, y, x] = what is read of the source at rows[y], columns[x], between its places."""

    source: int
    target: int
    rows: tuple[float, ...]
    columns: tuple[float, ...]
    kind: Literal["resize-linear"] = "resize-linear"

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        source, target = plan.tensors[self.source].shape, plan.tensors[self.target].shape
        wanted = (source[0], len(self.rows), len(self.columns))
        if target != wanted:
            yield f"gives {target}; its coordinates say {wanted}"
        for name, size, each in zip(
            ("rows", "columns"), source[1:], (self.rows, self.columns), strict=True
        ):
            if not all(0 <= place <= size - 1 for place in each):
                yield f"has {name} that are not between 0 and {size - 1}"


def shares(op: ResizeLinear, plan: Plan) -> tuple[Floats, Floats]:
    """Return how much of each row and column is in each of the target, [out, size]."""
    _, height, width = plan.tensors[op.source].shape
    return between(op.rows, height), between(op.columns, width)


class FloatResizeLinear(NumpyFloatOp[ResizeLinear]):
    """Two products with matrices, whose transposes pass gradients back."""

    def __init__(self, op: ResizeLinear, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        self._rows, self._columns = shares(op, work.plan)

    def value(self, *sources: Floats) -> Floats:
        """See `NumpyFloatOp.value`."""
        (x,) = sources
        return _spread(self._rows, self._columns, x)

    def gradients(self, gradient: Floats, *sources: Floats) -> Sequence[Floats]:
        """See `NumpyFloatOp.gradients`."""
        return [_spread(self._rows.T, self._columns.T, gradient)]


def _spread(rows: Floats, columns: Floats, x: Floats) -> Floats:
    """Return rows * x * columns^T of each map of [tiles, channels, height, width, lanes]."""
    return np.asarray(np.einsum("yh,tchwl,xw->tcyxl", rows, x, columns, optimize=True))


class IntegerResizeLinear(IntegerOp[ResizeLinear]):
    """One unit for all that is read; a gradient leaves room for all that one place is part of."""

    compute: NumpyResizeLinear

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        unit = units.worth[op.source].bound / WIDE
        self.compute.forward(units.read(op.source, unit, WIDE))
        units.raw_unit[op.target] = np.full(units.channels(op.target), unit)

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        op = self.op
        most = math.prod(float(each.sum(0).max()) for each in shares(op, units.plan))
        # No sum may leave int32 before it is shifted, and what is rounded up may be 1 more.
        high = min(WIDE, int(2**30 / max(most, 1.0)))
        shift = int(shift_to_fit(np.array([high * most + 1]))[0])
        bound = np.maximum(units.passed_bound(op.target), LEAST)
        for contribution in given:
            unit = bound / high
            chain = units.chain_in(op.target, unit, high)
            mix = units.give(contribution, Slope.whole(unit * 2.0**shift))
            self.compute.backward(chain, shift, mix)


class NumpyResizeLinear(NumpyOp[ResizeLinear]):
    """The same products of integers, with the distances in fixed point."""

    def forward(self, read: Read) -> None:
        """Write raw = (rows * read(x) * columns^T + half) >> 2 * `_POINT`."""
        op, backend = self.op, self.backend
        rows, columns = self._whole()
        sums = _products(rows, columns, backend.read(op.source, read))
        backend.raw[op.target] = shift_right_half_up(sums, 2 * _POINT)

    def backward(self, chain: Chain, shift: int, mix: Mix | None) -> None:
        """Give what each place gets of the passed gradients >> shift, rounded half to even."""
        op, backend = self.op, self.backend
        rows, columns = self._whole()
        sums = _products(rows.T, columns.T, backend.passed(op.target, chain))
        given = shift_right_half_even(sums, 2 * _POINT + shift)
        backend.put(op.source, np.clip(given, -WIDE, WIDE), mix)

    def _whole(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shares in fixed point; those of a place are 1 in all."""
        rows, columns = (_fixed(each) for each in shares(self.op, self.backend.plan))
        return rows, columns


def _fixed(shares: Floats) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.rint(np.ldexp(shares, _POINT)).astype(np.int64)
    largest = shares.argmax(1)
    found[np.arange(len(found)), largest] += 2**_POINT - found.sum(1)
    return found


def _products(
    rows: NDArray[np.int64], columns: NDArray[np.int64], x: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return rows * x * columns^T of each map of [n, channels, height, width], exactly."""
    found: NDArray[np.int64] = rows @ x.astype(np.int64) @ columns.T
    return found


def _planned(maker: Any, op: ir.Op) -> int:
    how, source, target = coordinates_of(op), maker.value(op), maker.target(op)
    maker.ops.append(ResizeLinear(source, target, how.rows, how.columns))
    return int(target)


_MAP: Shape = (3, 4, 3)

FAMILY = Family(
    ResizeLinear,
    (
        Example(
            ResizeLinear(1, 2, (0.0, 0.25, 1.5, 3.0, 2.75), (0.5, 1.25, 2.0)),
            (_MAP, _MAP, (3, 5, 3)),
        ),
        Example(
            ResizeLinear(1, 2, (0.0,), (0.0, 0.25, 0.75, 1.0)), ((2, 1, 2), (2, 1, 2), (2, 1, 4))
        ),
    ),
    FloatResizeLinear,
    IntegerFamily(IntegerResizeLinear, NumpyResizeLinear),
    {"resize_linear": _planned},
)
