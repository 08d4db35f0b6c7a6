"""Let a factor and an offset of all values go before what moves these, to where they fold.

A factor of all values of a product of matrices goes to the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedkit.graph import ir

_MOVES = ("transpose", "reshape", "flatten_nchw", "take", "matmul")


@dataclass(frozen=True)
class Match:
    """What moves values, or multiplies matrices, and the factor that alone reads the result."""

    mover: ir.Op
    affine: ir.Op


def match(graph: ir.Graph) -> Match | None:
    """Find one factor and offset for all channels right behind a move, or a factor of products."""
    for op in graph.ops:
        mover = graph.producer(op.inputs[0])
        if op.kind != "affine" or mover is None or mover.kind not in _MOVES:
            continue
        is_even = all(np.ptp(graph.constant(name)) == 0 for name in op.inputs[1:])
        is_even &= mover.kind != "matmul" or not graph.constant(op.inputs[2]).any()
        if is_even and graph.sole_consumer(mover.output) is op:
            return Match(mover, op)
    return None


def transform(graph: ir.Graph, found: Match) -> ir.Graph:
    """Let the factor read what the mover reads, and the mover what the factor writes."""
    mover, affine = found.mover, found.affine
    x = graph.tensors[mover.inputs[0]]
    name = ir.unused_name(f"{affine.output}.before", graph.tensors)
    constants = []
    for each in affine.inputs[1:]:
        data = np.full(x.shape[-1], graph.constant(each)[0], np.float32)
        own = ir.unused_name(f"{name}.{each}", graph.tensors)
        constants.append(ir.Tensor(own, data.shape, "float32", data))
    inputs = (x.name, *(constant.name for constant in constants))
    first = replace(affine, inputs=inputs, outputs=(name,))
    then = replace(mover, inputs=(name, *mover.inputs[1:]), outputs=affine.outputs)
    return graph.rewrite((mover, affine), (first, then), (ir.Tensor(name, x.shape), *constants))
