"""Layer normalisation over all of an example, or over groups of its channels, in float32."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from ctypes import byref, c_void_p

import numpy as np

from fedkit.engine.kernels import native
from fedkit.engine.kernels.network import Parameters
from fedkit.engine.kernels.structs import Array, Tensors, part, pointer
from fedkit.engine.ops.family import Example, Family
from fedkit.engine.ops.layer_norm_integer import INTEGER
from fedkit.engine.plan.execution import Contribution
from fedkit.engine.plan.layer_norm import ExampleNorm, LayerNorm
from fedkit.engine.sparse.float_op import Call, FloatOp, Workspace


class CLayer(ctypes.Structure):
    """`struct layer` of kernels.h."""

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
        ("groups", ctypes.c_int32),
        ("per_channel", ctypes.c_int32),
        ("l1", ctypes.c_int32),
        ("accumulate", ctypes.c_int32),
    )


def layer_struct(
    op: ExampleNorm, tensors: Tensors, parameters: Parameters, gradient: Array | None, lanes: Array
) -> CLayer:
    """Return the struct of a layer norm.

    Args:
        op: The layer norm.
        tensors: All tensors.
        parameters: Of the network.
        gradient: That of the parameters, None: not wanted.
        lanes: Room for the mean and the inverse deviation of each group of each example, float32
            [2, groups * examples].
    """
    return CLayer(
        source=ctypes.pointer(tensors[op.source]),
        target=ctypes.pointer(tensors[op.target]),
        weight=part(parameters, op.weight, parameters.values),
        bias=part(parameters, op.bias, parameters.values),
        weight_gradient=part(parameters, op.weight, gradient),
        bias_gradient=part(parameters, op.bias, gradient),
        mean=pointer(lanes[0]),
        inverse=pointer(lanes[1]),
        eps=op.eps,
        groups=op.groups,
        per_channel=op.per_channel,
        l1=op.kind == "l1-layer",
    )


class FloatLayerNorm(FloatOp[ExampleNorm]):
    """Keeps the mean and the inverse deviation of each block for the backward pass."""

    def __init__(self, op: ExampleNorm, number: int, work: Workspace) -> None:
        super().__init__(op, number, work)
        blocks = op.groups * work.most_tiles * work.kernels.lanes
        self._lanes = np.zeros((2, blocks), np.float32)
        self.room_bytes = self._lanes.nbytes
        gradient = work.gradient if work.mode == "train" else None
        parameters = work.network.parameters
        self._struct = layer_struct(op, work.tensors, parameters, gradient, self._lanes)

    def forward(self, work: Workspace) -> Call:
        """See `FloatOp.forward`."""
        return work.shared(work.kernels.layer_forward, work.tiles, byref(self._struct))

    def backward(self, work: Workspace, given: Sequence[Contribution]) -> Iterator[Call]:
        """See `FloatOp.backward`."""
        kernels, struct = work.kernels, byref(self._struct)
        if any(map(work.trains, self.op.parameters)):
            channels = work.plan.tensors[self.op.target].shape[0]
            yield work.shared(kernels.layer_gradients, channels, struct)
        for contribution in given:
            self._struct.accumulate = contribution.accumulate
            yield work.shared(kernels.layer_backward, work.tiles, struct)


_WEIGHTS = {"scale": (3, 4, 5), "offset": (3, 4, 5)}

FAMILY = Family(
    LayerNorm,
    (
        Example(
            LayerNorm(1, 2, "norm", 0.01, "scale", "offset", "layer"), ((3, 4, 5),) * 3, _WEIGHTS
        ),
        Example(
            LayerNorm(1, 2, "norm", 0.01, "scale", "offset", "l1-layer"), ((3, 4, 5),) * 3, _WEIGHTS
        ),
        Example(LayerNorm(1, 2, "norm", 0.01, None, None, "layer"), ((6, 1, 1),) * 3),
    ),
    FloatLayerNorm,
    INTEGER,
)
