"""Products of matrices in few-bit integers, by the compiled kernels.

The left matrix is quantised by a gradient rule, one scale per column: a channel of the reduction.
Its codes come multiplied by their channel's factor, see `gradients`, so that all products have one
scale. `fedkit.shiftquant.matmul` defines the same product, and has other ways to compute it.
"""

from __future__ import annotations

from ctypes import c_int64, c_uint32, c_void_p
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.constants import to_int32
from fedkit.engine.integer.gradients import RULES
from fedkit.engine.sparse.native import Kernels
from fedkit.engine.sparse.structs import pointer
from fedkit.errors import EngineError

_SUM = 2**31 - 1


@dataclass(frozen=True)
class Left:
    """A quantised left matrix.

    Attributes:
        values: int16 [rows, columns rounded up to even], code * factor.
        columns: Columns of the matrix.
        most: Largest magnitude a value may have.
        unit: What the value 1 is worth.
    """

    values: NDArray[np.int16]
    columns: int
    most: int
    unit: float


@dataclass(frozen=True)
class Right:
    """A right matrix of int8, packed in panels; depth by columns."""

    panels: NDArray[np.int16]
    depth: int
    columns: int


class Gemm:
    """Quantises, packs and multiplies.

    Args:
        kernels: The compiled kernels.
        rule: A row of `gradients.RULES`.
    """

    def __init__(self, kernels: Kernels, rule: str = "shiftquant") -> None:
        self._kernels, self._rule, self._lanes = kernels, RULES[rule], int(kernels.int_lanes())

    def left(self, x: NDArray[np.float32], bits: int, key: int) -> Left:
        """Quantise a float32 matrix [rows, columns] with stochastic rounding.

        Args:
            x: Contiguous, finite.
            bits: 2 to 8.
            key: Of the random bits, see `fedkit.numerics.derive_key`.

        Raises:
            EngineError: x is no contiguous float32 matrix, or holds NaN or infinite values.
        """
        if x.ndim != 2 or x.dtype != np.float32 or not x.flags.c_contiguous:
            raise EngineError(
                f"the left matrix is {x.dtype} {x.shape}; it must be a contiguous float32 matrix: "
                "use np.ascontiguousarray(x, np.float32)"
            )
        rows, columns = x.shape
        peak = np.zeros(columns, np.float32)
        size = (c_int64(rows), columns)
        self._kernels.int_column_peaks(_at(x), *size, _at(peak))
        # A NaN may pass the comparisons of a maximum, but never a sum.
        if not np.isfinite(peak).all() or not np.isfinite(x.sum()):
            raise EngineError("the left matrix holds NaN or infinite values; find where they arose")
        factor, unit = self._rule(peak.astype(np.float64), bits)
        most = 2 ** (bits - 1) - 1
        inverse, multiplied = (1.0 / (unit * factor)).astype(np.float32), to_int32(factor)
        values = np.empty((rows, columns + columns % 2), np.int16)
        self._kernels.int_quantize(
            *(_at(x), *size, _at(inverse), _at(multiplied), most),
            *(c_uint32(key & 0xFFFFFFFF), c_uint32(key >> 32), _at(values)),
        )
        return Left(values, columns, most * int(factor.max(initial=1)), unit)

    def right(self, w: NDArray[np.int8]) -> Right:
        """Pack an int8 matrix [depth, columns]."""
        w = np.ascontiguousarray(w, np.int8)
        depth, columns = w.shape
        shape = (-(-columns // self._lanes), -(-depth // 2), self._lanes, 2)
        panels = np.empty(shape, np.int16)
        self._kernels.int_pack_panels(_at(w), depth, columns, _at(panels))
        return Right(panels, depth, columns)

    def product(self, left: Left, right: Right) -> NDArray[np.int32]:
        """Return left times right, int32 [rows, columns]; `left.unit` is what 1 is worth.

        Raises:
            EngineError: The shapes do not match, or a sum might leave int32.
        """
        if left.columns != right.depth:
            raise EngineError(
                f"the left matrix has {left.columns} columns, the right one {right.depth} rows; "
                "they must be as many"
            )
        if left.columns * left.most * 128 > _SUM:
            raise EngineError(
                f"a sum of {left.columns} products of {left.most} and 128 may leave int32; split "
                "the matrices, or use fewer bits"
            )
        rows, (panels, pairs, lanes, _) = len(left.values), right.panels.shape
        out = np.empty((rows, panels * lanes), np.int32)
        self._kernels.int_gemm(
            *(_at(left.values), _at(right.panels), c_int64(rows), pairs, panels, _at(out)),
        )
        return out[:, : right.columns]


def _at(array: NDArray[np.generic]) -> c_void_p:
    return c_void_p(pointer(array))
