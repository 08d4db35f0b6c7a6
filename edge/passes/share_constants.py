"""Let ops that read equal constants read one, so that an artifact holds it once.

So a layer that a model calls several times has its weights once, and its biases where they are
equal: a bias is in steps of its input, and makes up for the means that it sees. What folds into
weights, as a batch norm after each call, makes them others.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from fedkit.graph import ir


def share_constants(graph: ir.Graph) -> ir.Graph:
    """Return a graph of the same numbers in which no two constants are alike."""
    first: dict[object, str] = {}
    names = {}
    for tensor in graph.tensors.values():
        if tensor.data is not None:
            digest = hashlib.sha256(tensor.data.tobytes()).digest()
            key = tensor.dtype, tensor.shape, tensor.quantization, digest
            names[tensor.name] = first.setdefault(key, tensor.name)
    if all(name == other for name, other in names.items()):
        return graph
    ops = tuple(
        replace(op, inputs=tuple(names.get(name, name) for name in op.inputs)) for op in graph.ops
    )
    kept = {name: each for name, each in graph.tensors.items() if names.get(name, name) == name}
    return replace(graph, tensors=kept, ops=ops)
