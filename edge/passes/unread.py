"""Build graphs out of ops, without what nothing reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedkit.graph import ir


def with_ops(graph: ir.Graph, ops: Sequence[ir.Op], tensors: Iterable[ir.Tensor] = ()) -> ir.Graph:
    """Return a graph of these ops, but those whose results nothing reads.

    Args:
        graph: Whose inputs and outputs stay, and what guards watch.
        ops: In an order in which they can run.
        tensors: That are new, or in place of one of the same name; what nobody uses goes.
    """
    known = {**graph.tensors, **{tensor.name: tensor for tensor in tensors}}
    return ir.needed(replace(graph, tensors=known, ops=tuple(ops)))


def with_changed(
    graph: ir.Graph, changed: Mapping[str, ir.Op], tensors: Iterable[ir.Tensor] = ()
) -> ir.Graph:
    """Return a graph in which other ops write some results.

    Args:
        graph: The graph.
        changed: Result -> the op that writes it now.
        tensors: As for `with_ops`.
    """
    return with_ops(graph, [changed.get(op.output, op) for op in graph.ops], tensors)


def reading(op: ir.Op, old: str, new: str) -> ir.Op:
    """Return an op that reads `new` where it read `old`."""
    return replace(op, inputs=tuple(new if name == old else name for name in op.inputs))


def constant(graph: ir.Graph, name: str, values: ir.Array) -> ir.Tensor:
    """Return a float32 constant of a name that a graph does not have yet."""
    own = ir.unused_name(name, graph.tensors)
    return ir.Tensor(own, values.shape, "float32", values.astype(np.float32))
