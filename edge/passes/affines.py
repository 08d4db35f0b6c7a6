"""See ops as a scale and a shift: per channel, or for each element of a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.graph import ir

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ScaleShift:
    """A value that is `base * scale + shift`.

    Attributes:
        base: The activation that is scaled.
        scale: float64 [channels], or the shape of the value where it is for each element.
        shift: As `scale`.
    """

    base: str
    scale: Floats
    shift: Floats

    def after(self, first: ScaleShift) -> ScaleShift:
        """Return this one of what `first` makes of its own base."""
        return ScaleShift(
            first.base, first.scale * self.scale, first.shift * self.scale + self.shift
        )


def affine_of(graph: ir.Graph, op: ir.Op) -> ScaleShift | None:
    """Return what an op is, if it scales and shifts each channel of one activation."""
    found = scaling_of(graph, op)
    if found is None:
        return None
    scale, shift = (each.reshape(-1, each.shape[-1]) for each in (found.scale, found.shift))
    if (scale != scale[0]).any() or (shift != shift[0]).any():
        return None
    return ScaleShift(found.base, scale[0], shift[0])


def scaling_of(graph: ir.Graph, op: ir.Op) -> ScaleShift | None:
    """Return what an op is for each element, if it is arithmetic of a value and a constant."""
    names = [name for name in op.inputs if graph.tensors[name].data is None]
    if len(names) != 1 or op.activation != "none":
        return None
    (base,) = names
    shape = graph.tensors[base].shape
    if op.kind not in ("affine", "add", "sub", "mul") or shape != graph.tensors[op.output].shape:
        return None
    of_op = [graph.constant(name) for name in op.inputs if name != base]
    first, *others = (np.broadcast_to(each, shape).astype(np.float64) for each in of_op)
    one, none = np.ones(shape), np.zeros(shape)
    if op.kind == "affine":
        return ScaleShift(base, first, others[0])
    if op.kind == "mul":
        return ScaleShift(base, first, none)
    if op.kind == "add":
        return ScaleShift(base, one, first)
    return ScaleShift(base, one, -first) if op.inputs[0] == base else ScaleShift(base, -one, first)


def root_of(graph: ir.Graph, name: str) -> ScaleShift:
    """Return a value as a scale and a shift of the earliest value that it is one of."""
    channels = graph.tensors[name].shape[-1]
    found = ScaleShift(name, np.ones(channels), np.zeros(channels))
    while (op := graph.producer(found.base)) is not None:
        before = affine_of(graph, op)
        if before is None:
            break
        found = found.after(before)
    return found


def factors(graph: ir.Graph, op: ir.Op, channels: ir.Array) -> Any:
    """Return a number per channel that a layer reads in a shape that goes with its weights.

    Args:
        graph: The graph.
        op: A layer with weights.
        channels: [channels that it reads].
    """
    shape = graph.tensors[op.inputs[1]].shape
    if op.kind == "depthwise_conv2d":
        return np.repeat(channels, shape[3] // len(channels))
    if op.kind == "grouped_conv2d":
        groups = channels.reshape(-1, shape[3])
        return np.repeat(groups, shape[0] // len(groups), axis=0)[:, None, None]
    return channels
