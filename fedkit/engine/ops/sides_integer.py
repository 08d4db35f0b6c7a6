"""What ops that multiply two activations do with each of their sources, in integers."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedkit.core.numerics import shift_right_half_even
from fedkit.engine.integer.constants import Ints, Mix, Read, Reals, to_int32
from fedkit.engine.integer.integer_op import check_sums
from fedkit.engine.integer.native_backend import (
    NativeBackend,
    mix_struct,
    read_struct,
    unclipped_codes,
)
from fedkit.engine.integer.numpy_backend import Array, NumpyBackend, across
from fedkit.engine.kernels.structs import pointer

Mixes = Mapping[int, Mix | None]
"""Side -> how its gradient is added to what is there; None: nothing is. Others need none."""


def most(read: Read) -> int:
    """Return the largest magnitude that a read gives."""
    return max(read.high, -read.low)


def check_products(bound: Reals | float, what: str) -> None:
    """Raise an `EngineError` where sums of products of two activations may leave int32."""
    check_sums(bound, what, "use fewer bits, or shorter sequences")


# In numpy


def put_side(
    backend: NumpyBackend, tensor: int, read: Read, sums: Array, shift: Ints, mix: Mix | None
) -> None:
    """Give a source sums >> shift, rounded half to even, but where the read clipped it."""
    given = shift_right_half_even(sums, np.broadcast_to(across(shift), sums.shape))
    if read.clips:
        given = np.where(np.abs(backend.read(tensor, read)) < read.high, given, 0)
    backend.put(tensor, given, mix)


# By the compiled kernels


class Side:
    """Fills an `IntSide`, and keeps its arrays alive while kernels run.

    Args:
        struct: Part of an op's struct.
        tensor: The source.
        backend: Holds it.
    """

    def __init__(self, struct: Any, tensor: int, backend: NativeBackend) -> None:
        self._struct, self._zeros = struct, backend.zeros(tensor, np.int32)
        struct.tensor = ctypes.pointer(backend.tensors[tensor])

    def reads(self, read: Read) -> None:
        """Say how it is read, and that it gets nothing."""
        self._read, self._struct.read, self._struct.gives = read, read_struct(read), 0

    def gets(self, shift: Ints, mix: Mix | None) -> None:
        """Say how it gets its gradient."""
        struct, zeros = self._struct, self._zeros
        self._shift, self._mix = to_int32(shift), mix or Mix(zeros, zeros, zeros)
        self._unclipped = unclipped_codes(self._read) if self._read.clips else (None, None)
        struct.shift, struct.mix = pointer(self._shift), mix_struct(self._mix)
        struct.first_unclipped, struct.last_unclipped = map(pointer, self._unclipped)
        struct.gives, struct.accumulate = 1, mix is not None
