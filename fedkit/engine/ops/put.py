"""What puts each value of a source in one place of a target: of ops that join and reorder."""

from __future__ import annotations

import ctypes
import math
from ctypes import byref
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.integer.constants import Chain, Mix, Read
from fedkit.engine.integer.native_backend import (
    NativeBackend,
    chain_struct,
    mix_struct,
    read_struct,
)
from fedkit.engine.integer.numpy_backend import NumpyBackend
from fedkit.engine.plan.structure import Plan, Shape
from fedkit.engine.sparse.float_op import Call, Workspace


class CPut(ctypes.Structure):
    """`struct put` of kernels.h."""

    _fields_ = tuple(
        (name, ctypes.c_int32) for name in ("start", "channel", "row", "column", "width")
    )


@dataclass(frozen=True)
class Put:
    """Element (c, y, x) of a source lies in a target at start + its product with the strides.

    Attributes:
        source: Tensor that is read.
        target: Tensor that is written; its elements count in C order.
        shape: Of the source.
        strides: Of channels, rows and columns.
        start: Where element (0, 0, 0) lies.
    """

    source: int
    target: int
    shape: Shape
    strides: tuple[int, int, int]
    start: int = 0

    @property
    def places(self) -> NDArray[np.intp]:
        """Where the elements of the source lie, in C order."""
        axes = zip(self.strides, np.indices(self.shape), strict=True)
        return np.asarray(self.start + sum(stride * at for stride, at in axes)).ravel()

    @property
    def struct(self) -> CPut:
        """What kernels are told."""
        return CPut(self.start, *self.strides, self.shape[2])


# In float32


def float_forward(work: Workspace, put: Put) -> Call:
    """Return a call that puts what is read of the source into the target."""
    tensors = (byref(work.tensors[each]) for each in (put.source, put.target))
    return work.shared(work.kernels.put_forward, work.tiles, *tensors, byref(put.struct))


def float_backward(work: Workspace, put: Put, accumulate: bool) -> Call:
    """Return a call that writes, or adds, what the target's gradient gives to the source's."""
    tensors = (byref(work.tensors[each]) for each in (put.source, put.target))
    arguments = (*tensors, byref(put.struct), int(accumulate))
    return work.shared(work.kernels.put_backward, work.tiles, *arguments)


# In integers


def numpy_forward(backend: NumpyBackend, put: Put, read: Read) -> None:
    """Write what is read of the source to some places of the target's raw."""
    shape = (backend.examples, *backend.plan.tensors[put.target].shape)
    raw = backend.raw.setdefault(put.target, np.zeros(shape, np.int64))
    values = backend.read(put.source, read).reshape(backend.examples, -1)
    raw.reshape(backend.examples, -1)[:, put.places] = values


def numpy_backward(backend: NumpyBackend, put: Put, chain: Chain, mix: Mix | None) -> None:
    """Give the passed gradient of those places to the source."""
    passed = backend.passed(put.target, chain).reshape(backend.examples, -1)
    shape = (backend.examples, *put.shape)
    backend.put(put.source, passed[:, put.places].reshape(shape), mix)


def native_forward(backend: NativeBackend, put: Put, read: Read) -> None:
    """See `numpy_forward`."""
    backend.kernels.int_put_forward(
        *(backend.tensor(put.source), byref(read_struct(read)), backend.tensor(put.target)),
        *(byref(put.struct), 0, backend.tiles),
    )


def native_backward(backend: NativeBackend, put: Put, chain: Chain, mix: Mix | None) -> None:
    """See `numpy_backward`."""
    zeros = backend.zeros(put.source, np.int32)
    added = mix_struct(mix or Mix(zeros, zeros, zeros))
    backend.kernels.int_put_backward(
        *(backend.tensor(put.source), backend.tensor(put.target)),
        *(byref(chain_struct(chain)), byref(added), byref(put.struct)),
        *(int(mix is not None), 0, backend.tiles),
    )


def strides_of(plan: Plan, tensor: int) -> tuple[int, int, int]:
    """Return how far it is from a channel, row or column of a tensor to the next."""
    _, height, width = plan.tensors[tensor].shape
    return height * width, width, 1


def count_of(plan: Plan, tensor: int) -> int:
    """Return the elements of a tensor."""
    return math.prod(plan.tensors[tensor].shape)
