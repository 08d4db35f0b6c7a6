"""A scale and a shift per channel that nothing trains: what a model computes with numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedkit.core.numerics import Int64s
from fedkit.engine.integer.constants import WIDE, Chain, Ints, Mix, Read, multiplier
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.numpy_backend import NumpyOp
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.function import MOST
from fedkit.engine.plan.structure import OneSourceOp, Plan
from fedkit.engine.sparse.float_op import Floats, NumpyFloatOp
from fedkit.graph import ir

_MOST_SHIFT = 30


@dataclass(frozen=True)
class Affine(OneSourceOp):
    """target[c] = scale[c] * read(source)[c] + shift[c], by numbers of float32."""

    source: int
    target: int
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    kind: Literal["affine"] = "affine"

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return True

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        yield from self.shape_problems(plan)
        channels = plan.tensors[self.source].shape[0]
        for name, values in (("scale", self.scale), ("shift", self.shift)):
            if len(values) != channels:
                yield f"has {len(values)} numbers of {name} for {channels} channels"
            if not all(abs(each) <= MOST for each in values):
                yield f"has a {name} beyond the numbers of float32"


class FloatAffine(NumpyFloatOp[Affine]):
    """Computes on whole tensors."""

    def value(self, *sources: Floats) -> Floats:
        """See `NumpyFloatOp.value`."""
        (x,) = sources
        return _along(self.op.scale) * x + _along(self.op.shift)

    def gradients(self, gradient: Floats, *sources: Floats) -> Sequence[Floats]:
        """See `NumpyFloatOp.gradients`."""
        return (_along(self.op.scale) * gradient,)


def _along(values: Sequence[float]) -> Floats:
    """Return a number per channel beside [tiles, channels, height, width, lanes]."""
    return np.array(values, np.float32)[:, None, None, None]


class IntegerAffine(IntegerOp[Affine]):
    """One unit for all channels of what is read, and one for each of the result."""

    compute: NumpyAffine

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op, bound = self.op, units.worth[self.op.source].bound
        scale, shift = np.array(op.scale), np.array(op.shift)
        read = bound / WIDE
        result = np.maximum(np.abs(scale) * bound + np.abs(shift), LEAST) / WIDE
        m, by = multiplier(scale * read / result, _MOST_SHIFT)
        added = np.rint(np.ldexp(shift / result, by)).astype(np.int64)
        self.compute.forward(units.read(op.source, read, WIDE), m, added, by)
        units.raw_unit[op.target] = result

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        scale = np.array(self.op.scale)
        for contribution in given:
            unit = np.maximum(units.passed_bound(self.op.target), LEAST) / WIDE
            chain = units.chain_in(self.op.target, unit, WIDE)
            worth = np.where(scale == 0, LEAST, unit * np.abs(scale))
            mix = units.give(contribution, Slope.whole(worth))
            self.compute.backward(np.sign(scale).astype(np.int32), chain, mix)


class NumpyAffine(NumpyOp[Affine]):
    """A multiplier of 15 bits, an addend and a shift for each channel."""

    def forward(self, read: Read, m: Ints, added: Int64s, shift: Ints) -> None:
        """Write raw = (m * read(x) + added + half) >> shift."""
        half = (1 << shift.astype(np.int64)) >> 1
        sums = _each(m) * self.backend.read(self.op.source, read) + _each(added + half)
        self.backend.raw[self.op.target] = np.clip(sums >> _each(shift), -WIDE, WIDE)

    def backward(self, sign: Ints, chain: Chain, mix: Mix | None) -> None:
        """Give the passed gradient times the sign of the scale, whose size is in the unit."""
        passed = self.backend.passed(self.op.target, chain)
        self.backend.put(self.op.source, _each(sign) * passed, mix)


def _each(values: Ints | Int64s) -> Int64s:
    """Return a number per channel beside [examples, channels, height, width]."""
    return values.astype(np.int64)[:, None, None]


def _planned(maker: Any, op: ir.Op) -> int:
    source, target = maker.value(op), maker.target(op)
    scale, shift = (tuple(map(float, maker.graph.constant(name))) for name in op.inputs[1:])
    maker.ops.append(Affine(source, target, scale, shift))
    return int(target)


FAMILY = Family(
    Affine,
    (
        Example(Affine(1, 2, (2.0, -0.5, 0.0), (0.25, 0.0, -1.5)), ((3, 3, 4),) * 3),
        Example(Affine(1, 2, (0.25, -3.0), (0.0, 7.0)), ((2, 1, 1),) * 3),
    ),
    FloatAffine,
    IntegerFamily(IntegerAffine, NumpyAffine),
    {"affine": _planned},
)
