"""Max and mean pooling."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedkit.core.numerics import shift_right_half_even, shift_right_half_up
from fedkit.engine.integer.constants import WIDE, Chain, Mix, Read, shift_to_fit
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.native_backend import NativeBackend
from fedkit.engine.integer.numpy_backend import Array, NumpyOp, padded, window
from fedkit.engine.integer.shared_units import SharedUnits
from fedkit.engine.integer.stepped_op import Step, SteppedOp
from fedkit.engine.kernels import int_native, native
from fedkit.engine.kernels.int_native import StepKind
from fedkit.engine.kernels.structs import Tensors, pointer
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import OneSourceOp, Pair, Plan
from fedkit.engine.plan.windows import window_problems
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace


@dataclass(frozen=True)
class Pool(OneSourceOp):
    """target = the largest, the mean or the sum of each window of read(source).

    A mean divides by the full area of the kernel, padding included; a maximum never is padding.
    """

    source: int
    target: int
    kernel: Pair
    stride: Pair
    padding: Pair
    operation: Literal["max", "mean", "sum"]
    kind: Literal["pool"] = "pool"

    @property
    def rereads(self) -> bool:
        """See `PlanOp.rereads`."""
        return self.operation == "max"

    @property
    def needs_exact(self) -> bool:
        """See `PlanOp.needs_exact`."""
        return self.operation == "max" and not self.keeps_argmax

    @property
    def keeps_argmax(self) -> bool:
        """See `PlanOp.keeps_argmax`: a byte is a pixel of a window, or none of them."""
        return self.operation == "max" and math.prod(self.kernel) <= 255

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        source, target = plan.tensors[self.source].shape, plan.tensors[self.target].shape
        if source[0] != target[0]:
            yield f"turns {source[0]} channels into {target[0]}; a pooling must keep them"
        yield from window_problems(source, target, self)
        halves = zip(self.padding, self.kernel, strict=True)
        if any(2 * padding > kernel for padding, kernel in halves):
            yield f"has padding {self.padding}; it must be at most half of the kernel {self.kernel}"


class CPool(ctypes.Structure):
    """`struct pool` of kernels.h."""

    _fields_ = (
        ("source", ctypes.POINTER(native.CTensor)),
        ("target", ctypes.POINTER(native.CTensor)),
        ("argmax", ctypes.c_void_p),
        ("windows", native.Windows),
        ("share", ctypes.c_float),
        ("maximum", ctypes.c_int32),
        ("accumulate", ctypes.c_int32),
    )


def windows(op: Pool, plan: Plan) -> native.Windows:
    """Return the struct of the windows that a pooling op slides."""
    source, target = plan.tensors[op.source].shape, plan.tensors[op.target].shape
    return native.Windows(*source[1:], *target[1:], *op.kernel, *op.stride, *op.padding)


def pool_struct(op: Pool, plan: Plan, tensors: Tensors) -> CPool:
    """Return the struct of a pooling op."""
    return CPool(
        source=ctypes.pointer(tensors[op.source]),
        target=ctypes.pointer(tensors[op.target]),
        windows=windows(op, plan),
        share=np.float32(1) / np.float32(_divisor(op)),
        maximum=op.operation == "max",
    )


def _divisor(op: Pool) -> int:
    """Return by what the sum of a window is divided."""
    return math.prod(op.kernel) if op.operation == "mean" else 1


class FloatPool(FloatOp[Pool]):
    """Keeps where the largest value of each window was, or finds it again."""

    by_tiles = True

    def __init__(self, op: Pool, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        self._struct = pool_struct(op, work.plan, work.tensors)
        self.locate(work)

    def locate(self, work: Workspace) -> None:
        """See `FloatOp.locate`."""
        self._struct.argmax = work.argmax(self.op.target)

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        return work.shared(work.kernels.pool_forward, work.tiles, byref(self._struct))

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        for contribution in given:
            self._struct.accumulate = contribution.accumulate
            yield work.shared(work.kernels.pool_backward, work.tiles, byref(self._struct))


class IntegerPool(IntegerOp[Pool]):
    """Reads in as many bits as the sum of a window leaves room for."""

    compute: NumpyPool

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        area = _area(op)
        high = _most_of(area)
        unit = units.worth[op.source].bound / high
        read = units.read(op.source, unit, high)
        shift = int(shift_to_fit(np.array([high * float(area)]))[0])
        self.reading = read, unit
        self.compute.forward(read, shift)
        units.raw_unit[op.target] = np.full(
            units.channels(op.target), unit * 2.0**shift / _divisor(op)
        )

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        op = self.op
        for contribution in given:
            overlap = _overlap(op)
            high = _most_of(overlap)
            unit = np.maximum(units.passed_bound(op.target), LEAST) / high
            chain = units.chain_in(op.target, unit, high)
            shift = int(shift_to_fit(np.array([high * float(overlap)]))[0])
            unit = unit * 2.0**shift / _divisor(op)
            mix = units.give(contribution, Slope.whole(unit))
            self.compute.backward(self.reading[0], chain, shift, mix)


def _area(op: Pool) -> int:
    """Return how many values of a window are added."""
    return math.prod(op.kernel) if op.operation != "max" else 1


def _overlap(op: Pool) -> int:
    """Return how many windows a value may be in."""
    return math.prod(-(-k // s) for k, s in zip(op.kernel, op.stride, strict=True))


def _most_of(count: int) -> int:
    """Return the largest number of 15 bits that fits int32 when so many are added."""
    return min(WIDE, 2**30 // count)


_OUTSIDE = -(2**40)


class NumpyPool(NumpyOp[Pool]):
    """All windows of one place in the kernel at once."""

    def forward(self, read: Read, shift: int) -> None:
        """Write the largest read(x) of each window, or (their sum + half) >> shift."""
        op, backend = self.op, self.backend
        found = self._windows(backend.read(op.source, read))
        if op.operation == "max":
            backend.raw[op.target] = found.max(0)
        else:
            sums = np.where(found == _OUTSIDE, 0, found).sum(0)
            backend.raw[op.target] = shift_right_half_up(sums, shift)

    def backward(self, read: Read, chain: Chain, shift: int, mix: Mix | None) -> None:
        """Give the sum of the windows' passed gradients >> shift, rounded half to even."""
        op, backend = self.op, self.backend
        x, p = backend.read(op.source, read), backend.passed(op.target, chain)
        sums = np.zeros_like(padded(op, x))
        best = self._windows(x).argmax(0)
        for index, tap in enumerate(np.ndindex(*op.kernel)):
            given = np.where(best == index, p, 0) if op.operation == "max" else p
            window(op, sums, tap, p.shape[2:])[...] += given
        (top, left), (height, width) = op.padding, x.shape[2:]
        inside = sums[:, :, top : top + height, left : left + width]
        backend.put(op.source, shift_right_half_even(inside, shift), mix)

    def _windows(self, x: Array) -> Array:
        """Return what each window sees, [taps, n, channels, height, width]."""
        op, plane = self.op, self.backend.plane(self.op.target)
        framed = padded(op, x, _OUTSIDE)
        return np.stack([window(op, framed, tap, plane) for tap in np.ndindex(*op.kernel)])


class IntPool(ctypes.Structure):
    """`struct int_pool`."""

    _fields_ = (
        ("source", ctypes.POINTER(int_native.IntTensor)),
        ("target", ctypes.POINTER(int_native.IntTensor)),
        ("read", int_native.IntRead),
        ("chain", int_native.IntChain),
        ("mix", int_native.IntMix),
        ("windows", native.Windows),
        ("maximum", ctypes.c_int32),
        ("shift_out", ctypes.c_int32),
        ("shift_in", ctypes.c_int32),
        ("accumulate", ctypes.c_int32),
    )


class IntPoolStep(ctypes.Structure):
    """`struct int_pool_step`."""

    _fields_ = (
        ("pool", ctypes.POINTER(IntPool)),
        ("source", ctypes.POINTER(int_native.IntWorth)),
        ("target", ctypes.POINTER(int_native.IntWorth)),
        ("divisor", ctypes.c_double),
        ("area", ctypes.c_int32),
        ("overlap", ctypes.c_int32),
        ("accumulate", ctypes.c_int32),
    )


class NativePool(SteppedOp[Pool]):
    """The same by steps of the kernels, with a plane of sums as scratch."""

    def __init__(self, op: Pool, number: int, backend: NativeBackend) -> None:
        super().__init__(op, number, backend)
        backend.reserve_plane(op.source)
        self._struct = IntPool(
            source=ctypes.pointer(backend.tensors[op.source]),
            target=ctypes.pointer(backend.tensors[op.target]),
            windows=windows(op, backend.plan),
            maximum=op.operation == "max",
        )

    def forward_step(self, shared: SharedUnits) -> Step:
        """See `SteppedOp.forward_step`."""
        self._read = np.zeros((3, self.backend.plan.tensors[self.op.source].shape[0]), np.int32)
        self._struct.read = int_native.IntRead(*map(pointer, self._read))
        self._step = IntPoolStep(
            pool=ctypes.pointer(self._struct),
            source=shared.at(self.op.source),
            target=shared.at(self.op.target),
            divisor=_divisor(self.op),
            area=_area(self.op),
            overlap=_overlap(self.op),
        )
        return StepKind.POOL_FORWARD, self._step

    def backward_steps(self, shared: SharedUnits, given: Sequence[Contribution]) -> Sequence[Step]:
        """See `SteppedOp.backward_steps`."""
        for contribution in given:
            self._step.accumulate = contribution.accumulate
        return [(StepKind.POOL_BACKWARD, self._step) for _ in given]


_SHAPES = ((2, 7, 5), (3, 7, 5), (3, 4, 2))

FAMILY = Family(
    Pool,
    (
        Example(Pool(1, 2, (3, 2), (2, 2), (1, 0), "max"), _SHAPES),
        Example(Pool(1, 2, (3, 2), (2, 2), (1, 0), "mean"), _SHAPES),
        Example(Pool(1, 2, (3, 2), (2, 2), (1, 0), "sum"), _SHAPES),
    ),
    FloatPool,
    IntegerFamily(IntegerPool, NumpyPool, NativePool),
)
