"""Products of matrices in few-bit integers, by the compiled kernels.

The left matrix is quantised by a gradient rule, one scale per column: a channel of the reduction.
Its codes come multiplied by their channel's factor, see `gradients`, so that all products have one
scale. `fedkit.integers.matmul` defines the same product, and has other ways to compute it.
"""

from __future__ import annotations

import math
from ctypes import c_int64, c_uint32, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import EngineError
from fedkit.engine.integer.constants import to_int32
from fedkit.engine.integer.gradients import FIT_INT8, RULES
from fedkit.engine.kernels.native import Kernel, Kernels
from fedkit.engine.kernels.structs import pointer

_SUM = 2**31 - 1
_NEAR = 100
"""Octaves around 1 within which a step and its reciprocal are far from the ends of float32."""

_TILE, _BLOCK, _DEEP = 16, 32, 64
"""Of kernels/amx.c: columns of a tile; what rows and columns, and what depths are multiples of."""


@dataclass(frozen=True)
class Left:
    """A quantised left matrix.

    Attributes:
        values: Codes times their factors, [rows, columns] with zeros behind both: int8 for tiles,
            else int16.
        rows: Rows of the matrix.
        columns: Its columns.
        most: Largest magnitude a value may have.
        unit: What the value 1 is worth.
    """

    values: NDArray[np.int16] | NDArray[np.int8]
    rows: int
    columns: int
    most: int
    unit: float


@dataclass(frozen=True)
class Right:
    """A right matrix of int8, packed for one kind of left ones; depth by columns."""

    panels: NDArray[np.int16] | NDArray[np.int8]
    depth: int
    columns: int


class Gemm:
    """Quantises, packs and multiplies.

    Where the processor has tiles of int8 (AMX), products of what fits int8 run on them, else on
    pairs of int16; the results are the same.

    Args:
        kernels: The compiled kernels.
        rule: A row of `gradients.RULES`.
        tiles: Whether tiles may be used.
    """

    def __init__(self, kernels: Kernels, rule: str = "shiftquant", tiles: bool = True) -> None:
        self._kernels, self._rule, self._lanes = kernels, RULES[rule], int(kernels.int_lanes())
        fits = rule in FIT_INT8 and kernels.int_gemm_amx is not None
        self._amx = kernels.int_gemm_amx if tiles and fits else None

    @property
    def path(self) -> str:
        """What multiplies: "amx", or "pairs" of int16."""
        return "pairs" if self._amx is None else "amx"

    def left(self, x: NDArray[np.float32], bits: int, key: int) -> Left:
        """Quantise a float32 matrix [rows, columns] with stochastic rounding.

        Args:
            x: Contiguous, finite.
            bits: 2 to 8.
            key: Of the random bits, see `fedkit.core.numerics.derive_key`.

        Raises:
            EngineError: x is not a contiguous float32 matrix, or holds NaN or infinite values.
        """
        if x.ndim != 2 or x.dtype != np.float32 or not x.flags.c_contiguous:
            raise EngineError(
                f"the left matrix is {x.dtype} {x.shape}; it must be a contiguous float32 matrix: "
                "use np.ascontiguousarray(x, np.float32)"
            )
        rows, columns = x.shape
        if columns == 0:
            raise EngineError("the left matrix has no columns; a product needs at least one")
        peak = np.zeros(columns, np.float32)
        size = (c_int64(rows), columns)
        self._kernels.int_column_peaks(_at(x), *size, _at(peak))
        if not np.isfinite(peak).all():
            raise EngineError("the left matrix holds NaN or infinite values; find where they arose")
        octaves = _far_octaves(peak)
        if octaves:
            x, peak = np.ldexp(x, -octaves), np.ldexp(peak, -octaves)
        factor, unit = self._rule(peak.astype(np.float64), bits)
        most = 2 ** (bits - 1) - 1
        inverse, multiplied = (1.0 / (unit * factor)).astype(np.float32), to_int32(factor)
        values, quantize = self._room(rows, columns)
        quantize(
            *(_at(x), *size, _at(inverse), _at(multiplied), most),
            *(c_uint32(key & 0xFFFFFFFF), c_uint32(key >> 32), _at(values), values.shape[1]),
        )
        unit = math.ldexp(unit, octaves)
        return Left(values, rows, columns, most * int(factor.max(initial=1)), unit)

    def _room(self, rows: int, columns: int) -> tuple[NDArray[Any], Kernel]:
        """Return memory for a left matrix, and what quantises into it."""
        if self._amx is None:
            return np.empty((rows, columns + columns % 2), np.int16), self._kernels.int_quantize
        values = np.empty((_padded(rows, _BLOCK), _padded(columns, _DEEP)), np.int8)
        values[rows:] = 0
        return values, self._kernels.int_quantize8

    def right(self, w: NDArray[np.int8]) -> Right:
        """Pack an int8 matrix [depth, columns]."""
        w = np.ascontiguousarray(w, np.int8)
        depth, columns = w.shape
        if self._amx is not None:
            return Right(self._tiles_of(w), depth, columns)
        shape = (-(-columns // self._lanes), -(-depth // 2), self._lanes, 2)
        panels = np.empty(shape, np.int16)
        self._kernels.int_pack_panels(_at(w), depth, columns, _at(panels))
        return Right(panels, depth, columns)

    def product(
        self, left: Left, right: Right, room: NDArray[np.int32] | None = None
    ) -> NDArray[np.int32]:
        """Return left times right, int32 [rows, columns]; `left.unit` is what 1 is worth.

        Args:
            left: Quantised by this object.
            right: Packed by it.
            room: Where to put it, from `room`; the result is a view of it.

        Raises:
            EngineError: The shapes do not match, or a sum might leave int32.
        """
        if left.columns != right.depth:
            raise EngineError(
                f"the left matrix has {left.columns} columns, the right one {right.depth} rows; "
                "they must be as many"
            )
        kinds = {left.values.dtype, right.panels.dtype}
        if kinds != {np.dtype(np.int16 if self._amx is None else np.int8)}:
            raise EngineError(
                f"the matrices were packed for other products than {self.path!r}; use those that "
                "this Gemm packed"
            )
        if left.columns * left.most * 128 > _SUM:
            raise EngineError(
                f"a sum of {left.columns} products of {left.most} and 128 may leave int32; split "
                "the matrices, or use fewer bits"
            )
        if room is None:
            room = self.room(left, right)
        rows, width = room.shape
        operands = (_at(left.values), _at(right.panels), c_int64(rows))
        if self._amx is not None:
            self._amx(*operands, left.values.shape[1], width, _at(room))
        else:
            panels, pairs, _, _ = right.panels.shape
            self._kernels.int_gemm(*operands, pairs, panels, _at(room))
        return room[: left.rows, : right.columns]

    def room(self, left: Left, right: Right) -> NDArray[np.int32]:
        """Return memory for a product of such matrices, which may be written again and again."""
        panels, _, columns, _ = right.panels.shape
        return np.empty((len(left.values), panels * columns), np.int32)

    def _tiles_of(self, w: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return [depth, columns] as [columns / 16, depth / 4, 16, 4], zeros behind both."""
        pack, (depth, columns) = self._kernels.int_pack_tiles, w.shape
        assert pack is not None
        deep, wide = _padded(depth, _DEEP), _padded(columns, _BLOCK)
        tiles = np.empty((wide // _TILE, deep // 4, _TILE, 4), np.int8)
        pack(_at(w), depth, columns, deep, wide, _at(tiles))
        return tiles


def _far_octaves(peak: NDArray[np.float32]) -> int:
    """Return the octaves a matrix must be scaled by for its steps to have float32 reciprocals.

    Almost always 0, and then no copy is made: only for numbers next to the ends of float32. What
    falls below its least number when huge ones are scaled is far less than a step's random bits.
    """
    _, exponent = np.frexp(peak.max())
    return int(exponent) if abs(exponent) > _NEAR else 0


def _padded(count: int, step: int) -> int:
    return -(-count // step) * step


def _at(array: NDArray[np.generic]) -> c_void_p:
    return c_void_p(pointer(array))
