"""Let constant channels join the biases of the convolutions and linear layers that read them.

A channel that is one integer whatever the input is adds a constant to the sums of its readers: the
constant is added to their biases, and their weights become zero. Sums stay the same integers, so
whatever rounds them cannot tell; their bound only falls, as no integer is further than 255 from
the zero point. At the zero point a channel adds nothing, padding included; at another integer it
adds less at a padded border than elsewhere, so readers that pad keep it.

What the integer is, the interpreter says; it counts only where all rounding policies agree.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge.passes.channels import MIXING, Flags, known
from edge.passes.probe import Values
from fedkit.core.numerics import Int64s
from fedkit.graph import ir


def fold_constants(graph: ir.Graph, seen: Values) -> ir.Graph:
    """Return an int8 graph of the same integers in which nobody reads constants.

    Args:
        graph: Int8.
        seen: Its activations, see `edge.passes.probe.observe`.
    """
    constant = known(graph)
    ops, tensors = list(graph.ops), dict(graph.tensors)
    for number, op in enumerate(graph.ops):
        name = op.inputs[0]
        if op.kind in MIXING and constant[name].any():
            is_one, value = _one_integer(seen, name)
            weight, bias = _folded(graph, op, is_one & constant[name], value)
            ops[number] = replace(op, inputs=(name, weight.name, bias.name))
            tensors |= {weight.name: weight, bias.name: bias}
    used = {*graph.inputs}.union(*((*op.inputs, *op.outputs) for op in ops))
    return replace(graph, tensors={n: t for n, t in tensors.items() if n in used}, ops=tuple(ops))


def _one_integer(seen: Values, name: str) -> tuple[Flags, Int64s]:
    """Return which channels are one integer everywhere under every policy, and some integer."""
    values = np.stack([each[name] for each in seen.values()]).astype(np.int64)
    values = values.reshape(-1, values.shape[-1])
    return (values == values[0]).all(axis=0), values[0]


def _folded(
    graph: ir.Graph, op: ir.Op, constant: Flags, value: Int64s
) -> tuple[ir.Tensor, ir.Tensor]:
    weight, bias = (graph.tensors[name] for name in op.inputs[1:])
    data, offsets = graph.constant(weight.name), graph.constant(bias.name)
    distance = value - graph.tensors[op.inputs[0]].zero_point
    pads = op.window is not None and any(op.window.padding)
    gone = constant & (distance == 0) if pads else constant
    taps = data.astype(np.int64).sum(axis=tuple(range(1, data.ndim - 1)))
    offsets = (offsets + taps[:, gone] @ distance[gone]).astype(np.int32)
    name, bias_name = (
        ir.unused_name(f"{op.output}.{what}_folded", graph.tensors) for what in ("weight", "bias")
    )
    return (
        replace(weight, name=name, data=np.where(gone, np.int8(0), data)),
        replace(bias, name=bias_name, data=offsets),
    )
