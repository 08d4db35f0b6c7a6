"""The structs that tell the kernels what a network is and where its memory lies.

A struct holds addresses: its maker keeps the arrays alive.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.engine.kernels import native
from fedkit.engine.kernels.network import Layer, NormState, Parameters
from fedkit.engine.plan.geometry import Padding
from fedkit.engine.plan.plan import LayerNorm, Plan, Pool, StoredTensor

Array = NDArray[Any]
Tensors = Sequence[native.CTensor]

_ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2}
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
        activation=_ACTIVATIONS[tensor.activation],
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
        weight=_part(parameters, of.weight, parameters.values),
        bias=_part(parameters, of.bias, parameters.values),
        weight_gradient=_part(parameters, of.weight, gradient),
        bias_gradient=_part(parameters, of.bias, gradient),
        eps=of.eps,
        l1=of.kind == "l1-batch",
        **{name: pointer(getattr(state, name)) for name in (*_READING, *_STATISTICS)},
    )


def _part(parameters: Parameters, name: str | None, vector: Array | None) -> int | None:
    return pointer(parameters.part(name, vector)) if name and vector is not None else None


def conv(layer: Layer, tensors: Tensors, parameters: Parameters) -> native.CConv:
    """Return the struct of a convolution, without its backward maps and what a mode decides."""
    geometry = layer.geometry
    op, (line_in, line_out) = geometry.op, geometry.lines
    values = parameters.part(op.weight, parameters.values)
    return native.CConv(
        source=ctypes.pointer(tensors[op.source]),
        target=ctypes.pointer(tensors[op.target]),
        values=pointer(values),
        bias=_part(parameters, op.bias, parameters.values),
        used_in=pointer(layer.used_in),
        used_out=pointer(layer.used_out),
        full_offset=pointer(geometry.full_offset),
        line_in=pointer(line_in),
        line_out=pointer(line_out),
        forward=_forward_map(layer, values),
        in_=_padding(geometry.padded_in),
        out=_padding(geometry.padded_out),
        in_height=geometry.source[1],
        in_width=geometry.source[2],
        out_height=geometry.target[1],
        out_width=geometry.target[2],
        lines=geometry.lines_per_tile,
        line_length=geometry.line_length,
        tiles_per_part=geometry.tiles_per_part,
        groups=op.groups,
        full_taps=geometry.full_taps,
        stride=op.stride[1] * geometry.lanes,
    )


def layer(
    op: LayerNorm, tensors: Tensors, parameters: Parameters, gradient: Array | None, lanes: Array
) -> native.CLayer:
    """Return the struct of a layer norm.

    Args:
        op: The layer norm.
        tensors: All tensors.
        parameters: Of the network.
        gradient: That of the parameters, None: not wanted.
        lanes: Room for the mean and the inverse deviation of each example, float32 [2, examples].
    """
    return native.CLayer(
        source=ctypes.pointer(tensors[op.source]),
        target=ctypes.pointer(tensors[op.target]),
        weight=_part(parameters, op.weight, parameters.values),
        bias=_part(parameters, op.bias, parameters.values),
        weight_gradient=_part(parameters, op.weight, gradient),
        bias_gradient=_part(parameters, op.bias, gradient),
        mean=pointer(lanes[0]),
        inverse=pointer(lanes[1]),
        eps=op.eps,
        l1=op.kind == "l1-layer",
    )


def pool(op: Pool, plan: Plan, tensors: Tensors) -> native.CPool:
    """Return the struct of a pooling op."""
    return native.CPool(
        source=ctypes.pointer(tensors[op.source]),
        target=ctypes.pointer(tensors[op.target]),
        windows=windows(op, plan),
        maximum=op.operation == "max",
    )


def windows(op: Pool, plan: Plan) -> native.Windows:
    """Return the struct of the windows that a pooling op slides."""
    source, target = plan.tensors[op.source].shape, plan.tensors[op.target].shape
    return native.Windows(*source[1:], *target[1:], *op.kernel, *op.stride, *op.padding)


def _padding(padding: Padding) -> native.CPadding:
    return native.CPadding(padding.top, padding.left, padding.height, padding.width)


def _forward_map(layer: Layer, values: Array) -> native.CMap:
    geometry = layer.geometry
    return native.CMap(
        first=None if layer.dense else pointer(layer.forward.first),
        tap=pointer(layer.forward.tap),
        offset=pointer(geometry.full_offset),
        matrix=pointer(values),
        slot_in=pointer(geometry.slot_in),
        slot_out=pointer(geometry.slot_out),
        rows=geometry.target[0],
        taps=geometry.full_taps,
        slots=geometry.target[1] * geometry.target[2],
    )


def backward_maps(
    layer: Layer, transposed: NDArray[np.float32]
) -> tuple[ctypes.Array[native.CMap], list[Array]]:
    """Return the maps from padded gradients of the outputs to those of the inputs, per phase.

    Args:
        layer: The layer.
        transposed: Room for a dense layer's weights in the order of these maps.

    Returns:
        The maps, and arrays that must live as long as they do.
    """
    geometry, phases = layer.geometry, layer.geometry.phases
    maps, keep, begin = (native.CMap * len(phases))(), list[Array](), 0
    for number, phase in enumerate(phases):
        shared = {
            "slot_in": pointer(phase.slot_in),
            "slot_out": pointer(phase.slot_out),
            "rows": geometry.source[0],
            "slots": phase.slots,
        }
        if not layer.dense:
            taps = layer.backward[number]
            first, tap = pointer(taps.first), pointer(taps.tap)
            maps[number] = native.CMap(first=first, tap=tap, **shared)
            continue
        offset, origin = geometry.dense_phase(phase)
        keep += [offset, origin]
        maps[number] = native.CMap(
            offset=pointer(offset),
            from_=pointer(origin),
            matrix=pointer(transposed[begin:]),
            taps=len(offset),
            from_step=geometry.op.kernel[0] * geometry.op.kernel[1],
            **shared,
        )
        begin += len(offset) * geometry.source[0]
    return maps, keep
