"""Normalisation layers as they train, with their statistics and parameters.

Only the training plan is made from these. In evaluation a norm over the batch is an affine op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fedkit.core.numerics import K
from fedkit.graph import ir
from fedkit.graph.spec import Random, Spec, any_shape, graph_of

FloatArray = ir.FloatArray
Spread = Callable[[FloatArray, float], FloatArray]
"""(variance, or mean absolute deviation; eps) -> what is divided by."""


def _batch(
    absolute: bool,
    op: ir.Op,
    graph: ir.Graph,
    x: FloatArray,
    mean: FloatArray,
    variance: FloatArray,
    weight: FloatArray,
    bias: FloatArray,
) -> FloatArray:
    """Normalise each channel by its running statistics."""
    eps = _eps(op)
    spread = np.sqrt(variance) + eps if absolute else np.sqrt(variance + eps)
    return (x - mean) / spread * weight + bias


def _layer(
    absolute: bool,
    op: ir.Op,
    graph: ir.Graph,
    x: FloatArray,
    weight: FloatArray,
    bias: FloatArray,
) -> FloatArray:
    """Normalise a whole example by its own mean and deviation."""
    axes, eps = tuple(range(1, x.ndim)), _eps(op)
    centred = x - x.mean(axes, keepdims=True)
    if absolute:
        spread = np.float32(K) * np.abs(centred).mean(axes, keepdims=True) + eps
    else:
        spread = np.sqrt(np.square(centred).mean(axes, keepdims=True) + eps)
    return np.asarray(centred / spread * weight + bias, np.float32)


def _eps(op: ir.Op) -> np.float32:
    assert isinstance(op.attributes, ir.Epsilon)  # the verifier's rule
    return np.float32(op.attributes.eps)


def _batch_operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    return [(shapes[0][-1],)] * 4


def _layer_operands(op: ir.Op, shapes: Sequence[ir.Shape]) -> list[ir.Shape]:
    return [shapes[0][1:]] * 2


def _example(kind: ir.Kind, constants: int, random: Random) -> ir.Graph:
    shape = any_shape(random)
    of_each = shape[1:] if constants == 2 else shape[-1:]
    values = [np.abs(random.standard_normal(of_each)) + 0.1 for _ in range(constants)]
    names = ("x", *(f"c{number}" for number in range(constants)))
    return graph_of((shape, shape), values, ir.Op(kind, names, ("y",), attributes=ir.Epsilon(1e-3)))


def _spec(kind: ir.Kind, layer: str, absolute: bool, over_batch: bool) -> Spec:
    constants = 4 if over_batch else 2
    return Spec(
        kind,
        layer,
        partial(_batch if over_batch else _layer, absolute),
        partial(_example, kind, constants),
        constants=constants,
        operands=_batch_operands if over_batch else _layer_operands,
        attributes=ir.Epsilon,
        only_trains=True,
    )


SPECS = (
    _spec("batch_norm", "batch norm", absolute=False, over_batch=True),
    _spec("l1_batch_norm", "L1 batch norm", absolute=True, over_batch=True),
    _spec("layer_norm", "layer norm", absolute=False, over_batch=False),
    _spec("l1_layer_norm", "L1 layer norm", absolute=True, over_batch=False),
)
