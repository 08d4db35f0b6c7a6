"""The structs that tell the kernels what a network is and where its memory lies.

A struct holds addresses: its maker keeps the arrays alive.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from fedkit.engine.kernels import native
from fedkit.engine.kernels.network import NormState, Parameters
from fedkit.engine.plan.structure import StoredTensor

Array = NDArray[Any]
Tensors = Sequence[native.CTensor]

ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2}
"""What structs call them."""

_READING = ("scale", "shift", "a", "b", "c", "mean")
_STATISTICS = ("center", "spread", "signs")


def pointer(array: Array | None) -> int | None:
    """Return the address of an array's first element; the caller keeps the array alive."""
    return None if array is None or array.size == 0 else array.ctypes.data


def tensor(
    tensor: StoredTensor, norm: NormState | None, sums: Array, x: int | None, gradient: int | None
) -> native.CTensor:
    """Return the struct of a tensor whose values and gradient lie at the addresses given."""
    channels, height, width = tensor.shape
    struct = native.CTensor(
        x=x,
        gradient=gradient,
        sums=pointer(sums),
        channels=channels,
        plane=height * width,
        activation=ACTIVATIONS[tensor.activation],
    )
    if norm is not None:
        for name in _READING:
            setattr(struct, name, pointer(getattr(norm, name)))
        struct.l1 = norm.norm.kind == "l1-batch"
    return struct


def norm(
    tensor: native.CTensor, state: NormState, parameters: Parameters, gradient: Array | None
) -> native.CNorm:
    """Return the struct of a norm; `gradient` is that of the parameters, None: not wanted."""
    of = state.norm
    return native.CNorm(
        tensor=ctypes.pointer(tensor),
        weight=part(parameters, of.weight, parameters.values),
        bias=part(parameters, of.bias, parameters.values),
        weight_gradient=part(parameters, of.weight, gradient),
        bias_gradient=part(parameters, of.bias, gradient),
        eps=of.eps,
        l1=of.kind == "l1-batch",
        **{name: pointer(getattr(state, name)) for name in (*_READING, *_STATISTICS)},
    )


def part(parameters: Parameters, name: str | None, vector: Array | None) -> int | None:
    """Return the address of a parameter's share of a vector; None where there is none."""
    return pointer(parameters.part(name, vector)) if name and vector is not None else None
