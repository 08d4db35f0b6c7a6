"""Values from other places along single axes: slices, splits, flips, borders, enlargement."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.numerics import shift_right_half_even
from fedkit.engine.integer.constants import WIDE, Chain, Mix, Read, Reals, shift_to_fit
from fedkit.engine.integer.integer_op import LEAST, IntegerFamily, IntegerOp, Slope, Units
from fedkit.engine.integer.native_backend import NativeBackend, NativeOp, chain_struct, read_struct
from fedkit.engine.integer.numpy_backend import NumpyOp
from fedkit.engine.kernels import int_native, native
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.structure import OneSourceOp, Plan, Shape
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace
from fedkit.graph import ir
from fedkit.graph.places import places_of

NOTHING = -1
"""The place of a row, column or pixel of zeros."""

Places = NDArray[np.int32]
List = tuple[int, ...] | None


@dataclass(frozen=True)
class Take(OneSourceOp):
    """target[c, y, x] = read(source)[from_channels[c], from_rows[y], from_columns[x]].

    Where there is no list, an axis stays as it is. A place may be taken several times, or never.
    Row and column -1 are zeros.
    """

    source: int
    target: int
    from_channels: List = None
    from_rows: List = None
    from_columns: List = None
    kind: Literal["take"] = "take"

    @property
    def lists(self) -> tuple[List, List, List]:
        """Of channels, rows and columns."""
        return self.from_channels, self.from_rows, self.from_columns

    def problems(self, plan: Plan) -> Iterator[str]:
        """See `PlanOp.problems`."""
        source, target = plan.tensors[self.source].shape, plan.tensors[self.target].shape
        for name, size, each, found in zip(
            ("channels", "rows", "columns"), source, self.lists, target, strict=True
        ):
            least = 0 if name == "channels" else NOTHING
            if each is not None and not all(least <= place < size for place in each):
                yield f"takes {name} beyond the {size} that there are"
            if found != (size if each is None else len(each)):
                yield f"gives {found} {name}; there must be one for each that is taken"


def places(op: Take, plan: Plan) -> tuple[Places, Places]:
    """Return which channel of the source each of the target is, and which pixel each pixel."""
    channels, rows, columns = (
        np.arange(size) if each is None else np.array(each)
        for size, each in zip(plan.tensors[op.source].shape, op.lists, strict=True)
    )
    pixels = rows[:, None] * plan.tensors[op.source].shape[2] + columns
    pixels[(rows[:, None] == NOTHING) | (columns == NOTHING)] = NOTHING
    return channels.astype(np.int32), pixels.ravel().astype(np.int32)


def by_source(channels: Places, count: int) -> tuple[Places, Places]:
    """Return the target's channels in the order of those they are, and where each of those begins.

    Args:
        channels: Of the source, for each of the target's.
        count: How many the source has.

    Returns:
        Channels of the target, and [count + 1] places among them.
    """
    first = np.zeros(count + 1, np.int32)
    np.cumsum(np.bincount(channels, minlength=count), out=first[1:])
    return np.argsort(channels, kind="stable").astype(np.int32), first


class CTake(ctypes.Structure):
    """`struct take` of kernels.h."""

    _fields_ = (
        ("source", ctypes.POINTER(native.CTensor)),
        ("target", ctypes.POINTER(native.CTensor)),
        ("channels", ctypes.c_void_p),
        ("pixels", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("accumulate", ctypes.c_int32),
    )


def _tables(op: Take, plan: Plan) -> dict[str, Places]:
    """Return the arrays of both structs, by the names of their fields."""
    channels, pixels = places(op, plan)
    order, first = by_source(channels, plan.tensors[op.source].shape[0])
    return {"channels": channels, "pixels": pixels, "order": order, "first": first}


def _addresses(tables: dict[str, Places]) -> dict[str, Any]:
    return {name: array.ctypes.data for name, array in tables.items()}


class FloatTake(FloatOp[Take]):
    """Sums what the places that one is taken to pass back; of none that is 0."""

    by_tiles = True

    def __init__(self, op: Take, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        self._kept = _tables(op, work.plan)
        ends = (ctypes.pointer(work.tensors[each]) for each in (op.source, op.target))
        self._struct = CTake(*ends, **_addresses(self._kept))

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        return work.shared(work.kernels.take_forward, work.tiles, byref(self._struct))

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        for contribution in given:
            self._struct.accumulate = contribution.accumulate
            yield work.shared(work.kernels.take_backward, work.tiles, byref(self._struct))


class IntegerTake(IntegerOp[Take]):
    """One unit for all that is read; a gradient leaves room for as many as one place is taken."""

    compute: NumpyTake | NativeTake

    def forward(self, units: Units) -> None:
        """See `IntegerOp.forward`."""
        op = self.op
        unit = units.worth[op.source].bound / WIDE
        self.compute.forward(units.read(op.source, unit, WIDE))
        units.raw_unit[op.target] = np.full(units.channels(op.target), unit)

    def backward(self, units: Units, given: Sequence[Contribution]) -> None:
        """See `IntegerOp.backward`."""
        op, (channels, pixels) = self.op, places(self.op, units.plan)
        taken = pixels[pixels != NOTHING]
        most = int(np.bincount(channels).max()) * int(np.bincount(taken, minlength=1).max())
        most = max(most, 1)
        high = min(WIDE, 2**30 // most)
        shift = int(shift_to_fit(np.array([high * float(most)]))[0])
        for contribution in given:
            unit = self._units(units, channels) / high
            chain = units.chain_in(op.target, unit[channels], high)
            mix = units.give(contribution, Slope.whole(unit * 2.0**shift))
            self.compute.backward(chain, shift, mix)

    def _units(self, units: Units, channels: Places) -> Reals:
        """Return per channel of the source the largest gradient of those that are it."""
        bound = np.full(units.channels(self.op.source), LEAST)
        np.maximum.at(bound, channels, units.passed_bound(self.op.target))
        return bound


class NumpyTake(NumpyOp[Take]):
    """Indexes all channels and pixels at once."""

    def forward(self, read: Read) -> None:
        """Write raw = what is read of the places."""
        op, backend = self.op, self.backend
        channels, pixels = places(op, backend.plan)
        shape = (backend.examples, *backend.plan.tensors[op.target].shape)
        x = backend.read(op.source, read)
        x = x.reshape(*x.shape[:2], -1)[:, channels][:, :, pixels]
        backend.raw[op.target] = np.where(pixels == NOTHING, 0, x).reshape(shape)

    def backward(self, chain: Chain, shift: int, mix: Mix | None) -> None:
        """Give the sum of the passed gradients >> shift, rounded half to even."""
        op, backend = self.op, self.backend
        channels, pixels = places(op, backend.plan)
        shape = (backend.examples, *backend.plan.tensors[op.source].shape)
        taken, plane = pixels != NOTHING, math.prod(backend.plane(op.source))
        passed = backend.passed(op.target, chain).reshape(backend.examples, len(channels), -1)
        passed = passed[:, :, taken].reshape(backend.examples, -1)
        found = (channels[:, None] * plane + pixels[taken]).ravel()
        sums = np.zeros((shape[1] * plane, shape[0]), np.int64)
        np.add.at(sums, found, passed.T)
        backend.put(op.source, shift_right_half_even(sums.T.reshape(shape), shift), mix)


class IntTake(ctypes.Structure):
    """`struct int_take`."""

    _fields_ = (
        ("source", ctypes.POINTER(int_native.IntTensor)),
        ("target", ctypes.POINTER(int_native.IntTensor)),
        ("read", int_native.IntRead),
        ("chain", int_native.IntChain),
        ("mix", int_native.IntMix),
        ("channels", ctypes.c_void_p),
        ("pixels", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("shift_in", ctypes.c_int32),
        ("accumulate", ctypes.c_int32),
    )


class NativeTake(NativeOp[Take]):
    """The same by a kernel, with a plane of sums as scratch."""

    def __init__(self, op: Take, number: int, backend: NativeBackend) -> None:
        super().__init__(op, number, backend)
        backend.reserve_plane(op.source)
        self._kept = _tables(op, backend.plan)
        ends = (ctypes.pointer(backend.tensors[each]) for each in (op.source, op.target))
        self._struct = IntTake(*ends, **_addresses(self._kept))

    def forward(self, read: Read) -> None:
        """See `NumpyTake.forward`."""
        self._struct.read = read_struct(read)
        self.backend.kernels.int_take_forward(byref(self._struct), 0, self.backend.tiles)

    def backward(self, chain: Chain, shift: int, mix: Mix | None) -> None:
        """See `NumpyTake.backward`."""
        struct, backend = self._struct, self.backend
        struct.chain, struct.shift_in = chain_struct(chain), shift
        self.set_mix(struct, self.op.source, mix)
        backend.kernels.int_take_backward(byref(struct), 0, backend.tiles, backend.scratch)


def _planned(maker: Any, op: ir.Op) -> int:
    rows, columns, channels = places_of(op).lists
    source, target = maker.value(op), maker.target(op)
    maker.ops.append(Take(source, target, channels, rows, columns))
    return int(target)


def _padded(maker: Any, op: ir.Op) -> int:
    """Leave a padding to the average that alone reads it and counts it; else take zeros."""
    if maker.is_averaged(op):
        return int(maker.skip_padding(op))
    top, bottom, left, right = op.sliding.padding
    source, target = maker.value(op), maker.target(op)
    _, height, width = maker.tensors[source].shape
    rows = (*[NOTHING] * top, *range(height), *[NOTHING] * bottom)
    columns = (*[NOTHING] * left, *range(width), *[NOTHING] * right)
    maker.ops.append(Take(source, target, None, rows, columns))
    return int(target)


_MAP: Shape = (3, 4, 5)

FAMILY = Family(
    Take,
    (
        Example(Take(1, 2, (2, 0), (3, 1), (0, 2, 4)), (_MAP, _MAP, (2, 2, 3))),
        Example(Take(1, 2, (1, 1, 0, 1), (2, 1, 0, 1, 2), None), (_MAP, _MAP, (4, 5, 5))),
        Example(Take(1, 2, (4, 3, 3), None, None), ((5, 1, 1), (5, 1, 1), (3, 1, 1))),
        Example(Take(1, 2, None, None, (0, 0, 1, 1, 2, 2)), ((4, 1, 3), (4, 1, 3), (4, 1, 6))),
        Example(Take(1, 2, None, (-1, 0, 1, 2, 3), (4, -1, 0)), (_MAP, _MAP, (3, 5, 3))),
    ),
    FloatTake,
    IntegerFamily(IntegerTake, NumpyTake, NativeTake),
    {"take": _planned, "pad": _padded},
)
