"""Normalisation over the channels of each place: a layer norm of tokens, an RMS norm."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import byref, c_void_p
from typing import Any

import numpy as np

from fedkit.engine.kernels import native
from fedkit.engine.kernels.structs import part, pointer
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.ops.layer_norm_integer import INTEGER
from fedkit.engine.plan.channel_norm import ChannelNorm
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace
from fedkit.graph import ir
from fedkit.graph.ops.norms import OfPlace


class CChannelNorm(ctypes.Structure):
    """`struct channel_norm` of kernels.h."""

    _fields_ = (
        ("source", ctypes.POINTER(native.CTensor)),
        ("target", ctypes.POINTER(native.CTensor)),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("weight_gradient", c_void_p),
        ("bias_gradient", c_void_p),
        ("mean", c_void_p),
        ("inverse", c_void_p),
        ("eps", ctypes.c_double),
        ("centred", ctypes.c_int32),
        ("accumulate", ctypes.c_int32),
    )


class FloatChannelNorm(FloatOp[ChannelNorm]):
    """Keeps the mean and the inverse deviation of each place for the backward pass."""

    def __init__(self, op: ChannelNorm, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        _, height, width = work.plan.tensors[op.source].shape
        places = height * width * work.most_tiles * work.kernels.lanes
        self._lanes = np.zeros((2, places), np.float32)
        self.room_bytes = self._lanes.nbytes
        gradient = work.gradient if work.mode == "train" else None
        parameters = work.network.parameters
        self._struct = CChannelNorm(
            source=ctypes.pointer(work.tensors[op.source]),
            target=ctypes.pointer(work.tensors[op.target]),
            weight=part(parameters, op.weight, parameters.values),
            bias=part(parameters, op.bias, parameters.values),
            weight_gradient=part(parameters, op.weight, gradient),
            bias_gradient=part(parameters, op.bias, gradient),
            mean=pointer(self._lanes[0]),
            inverse=pointer(self._lanes[1]),
            eps=op.eps,
            centred=op.centred,
        )

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        return work.shared(work.kernels.channel_norm_forward, work.tiles, byref(self._struct))

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        kernels, struct = work.kernels, byref(self._struct)
        if any(map(work.trains, self.op.parameters)):
            channels = work.plan.tensors[self.op.target].shape[0]
            yield work.shared(kernels.channel_norm_gradients, channels, struct)
        for contribution in given:
            self._struct.accumulate = contribution.accumulate
            yield work.shared(kernels.channel_norm_backward, work.tiles, struct)


def _planned(maker: Any, op: ir.Op) -> int:
    assert isinstance(op.attributes, OfPlace)  # the verifier's rule
    how, source, target = op.attributes, maker.value(op), maker.target(op)
    weight, bias = maker.parameter(op, 1, 1.0), maker.parameter(op, 2, 0.0)
    maker.ops.append(ChannelNorm(source, target, how.eps, weight, bias, how.centred))
    return int(target)


_SHAPES = ((5, 3, 2),) * 3
_WEIGHTS = {"scale": (5,), "offset": (5,)}

FAMILY = Family(
    ChannelNorm,
    (
        Example(ChannelNorm(1, 2, 0.01, "scale", "offset", True), _SHAPES, _WEIGHTS),
        Example(ChannelNorm(1, 2, 0.01, "scale", None, False), _SHAPES, {"scale": (5,)}),
        Example(ChannelNorm(1, 2, 0.01, None, None, True), ((6, 1, 1),) * 3),
    ),
    FloatChannelNorm,
    INTEGER,
    from_graph={"channel_norm": _planned},
)
