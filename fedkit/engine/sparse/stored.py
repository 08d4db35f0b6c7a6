"""What the backward pass reads of the forward pass, in few bits between the two.

The forward pass computes with float32 throughout. A tensor that it has read for the last time is
stored in 16, 8 or 4 bits. In the backward pass convolutions make float32 of a part at a time; for
other ops the tensor is made float32 again, elsewhere, right before it is read. Values are rounded
at random, so they are right on average, and none crosses the end of the range in which a read's
activation passes a gradient: stored.h says how.
"""

from __future__ import annotations

import ctypes
import math

from fedkit.engine.kernels import native

STORED_BITS = (32, 16, 8, 4)
"""32: as it is."""

_LINE = 16


def stored_floats(planes: int, pixels: int, lanes: int, bits: int) -> int:
    """Return the memory of the codes of so many planes, and of a grid for each, in float32."""
    return _codes(planes, pixels, lanes, bits) + math.ceil(planes * ctypes.sizeof(native.CGrid) / 4)


def saves(values: int, bits: int) -> bool:
    """Say whether a plane of so many values takes at least a quarter less memory in few bits."""
    return values * bits / 8 + ctypes.sizeof(native.CGrid) < 3 * values


def stored_bytes(pixels: int, lanes: int, bits: int) -> int:
    """Return the bytes of the codes of a plane: `stored_bytes` of stored.h."""
    return math.ceil(pixels / 2) * lanes if bits == 4 else pixels * lanes * bits // 8


def _codes(planes: int, pixels: int, lanes: int, bits: int) -> int:
    return math.ceil(planes * stored_bytes(pixels, lanes, bits) / 4 / _LINE) * _LINE


class StoredValues:
    """One tensor's values, first as the forward pass makes them, then as codes.

    Ops that read no codes find them wide again.

    Args:
        tensor: Its struct, which says where the values are.
        before: Address of the values in the forward pass.
        codes: Address of the codes, and of the grids behind them.
        after: Address of the values in the backward pass; None: codes are read.
        planes: Channels of the most tiles.
        lanes: Examples of a tile.
        bits: Of a code.

    Attributes:
        struct: What the kernels take.
        room_bytes: Memory of its own.
    """

    room_bytes = 0

    def __init__(
        self,
        tensor: native.CTensor,
        before: int,
        codes: int,
        after: int | None,
        planes: int,
        lanes: int,
        bits: int,
    ) -> None:
        self._tensor, self._before, self._after = tensor, before, after
        self._planes = planes
        self._ranges: ctypes.Array[native.CRange] | None = None
        self._codes, self._grids = codes, codes + 4 * _codes(planes, tensor.plane, lanes, bits)
        self._code_bytes = tensor.channels * stored_bytes(tensor.plane, lanes, bits)
        self._value_bytes = 4 * tensor.channels * tensor.plane * lanes
        self.struct = native.CStored(tensor=ctypes.pointer(tensor), bits=bits)
        self.at(0)

    def take_ranges(self) -> None:
        """Make room for what the op that writes the tensor tells of its planes."""
        self._ranges = (native.CRange * self._planes)()
        self.room_bytes = ctypes.sizeof(self._ranges)
        self.at(0)

    def begin(self, key: int) -> None:
        """Get ready for a forward pass, whose values are rounded by a key of 64 bits."""
        self.struct.key_low, self.struct.key_high = key & 0xFFFFFFFF, key >> 32
        self.at(0)

    def at(self, tile: int) -> None:
        """Get ready for the forward pass of tiles of which this is the first that has memory."""
        grids = self._grids - tile * self._tensor.channels * ctypes.sizeof(native.CGrid)
        self._ahead = tile * self._value_bytes
        self._tensor.x, self._tensor.stored = self._before - self._ahead, None
        self.struct.codes = self._codes - tile * self._code_bytes
        self.struct.grids = ctypes.cast(grids, ctypes.POINTER(native.CGrid))
        if self._ranges is not None:
            before = tile * self._tensor.channels * ctypes.sizeof(native.CRange)
            ranges = ctypes.addressof(self._ranges) - before
            self._tensor.ranges = ctypes.cast(ranges, ctypes.POINTER(native.CRange))

    def turn(self) -> None:
        """Let the tensor be what the backward pass reads."""
        if self._after is not None:
            self._tensor.x = self._after - self._ahead
            return
        # x stays an address that may be read: kernels load values that they turn out not to need.
        self._tensor.stored = ctypes.pointer(self.struct)
