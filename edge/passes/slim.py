"""Remove the channels of an int8 graph from which no weight leads to an output.

What such a channel holds makes no difference. It goes with all that stand and fall together: the
channels of both operands and the result of an addition, of input and output of a depthwise
convolution or a pool, the h*w features of a flattened channel. Before, constant channels are
folded (`edge.passes.fold_constants`), so that they are among those nobody reads. Both are exact
under every rounding policy; a probe sees to it.

Graph inputs and outputs stay as they are. Every activation keeps a channel: where none counts the
first stays, and the weights that made it become zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edge.ops.registry import spec_of as integer_spec_of
from edge.passes.channels import MIXING, Flags, activations, groups, known, reads
from edge.passes.fold_constants import fold_constants
from edge.passes.probe import compare, observe
from fedkit.graph import ir
from fedkit.graph.ops.registry import CHANNEL_AXIS, WEIGHTED, spec_of
from fedkit.graph.verify import verify

Channels = Mapping[str, Flags]
"""Activation -> which of its channels."""


def slim(graph: ir.Graph) -> ir.Graph:
    """Remove the channels that change nothing.

    Args:
        graph: Int8, with one input and one output.

    Returns:
        A graph with the same outputs, bit for bit, that passes `verify`; `graph` itself if
        every channel counts. Activations keep their names.

    Raises:
        ExportError: The probe found an activation that is not what it was; it is named.
    """
    alive = _alive(graph)
    if all(flags.all() for flags in alive.values()) and not _has_constants(graph):
        return graph
    before = observe(graph)
    folded = fold_constants(graph, before)
    alive = _alive(folded)
    kept = _at_least_one(folded, alive)
    slimmed = _cut(folded, alive, kept)
    verify(slimmed)
    compare(before, observe(slimmed), alive, {name: alive[name][kept[name]] for name in alive})
    return slimmed


def _has_constants(graph: ir.Graph) -> bool:
    return any(flags.any() for flags in known(graph).values())


def _alive(graph: ir.Graph) -> Channels:
    """Return the channels that an output depends on, found backwards from the outputs."""
    group = groups(graph)
    alive = np.zeros(1 + max(int(labels.max()) for labels in group.values()), np.bool_)
    for name in (*graph.inputs, *graph.outputs):
        alive[group[name]] = True
    count = -1
    # Once more as long as groups lead back to ops already seen.
    while count != (count := int(alive.sum())):
        for op in reversed(graph.ops):
            if op.kind in MIXING:
                needed = reads(graph, op)[alive[group[op.output]]].any(axis=0)
                alive[group[op.inputs[0]][needed]] = True
    return {name: alive[labels] for name, labels in group.items()}


def _at_least_one(graph: ir.Graph, alive: Channels) -> Channels:
    group = groups(graph)
    spared: set[int] = set()
    for name, flags in alive.items():
        if not flags.any() and spared.isdisjoint(group[name].tolist()):
            spared.add(int(group[name][0]))
    return {name: flags | np.isin(group[name], list(spared)) for name, flags in alive.items()}


def _cut(graph: ir.Graph, alive: Channels, kept: Channels) -> ir.Graph:
    tensors = {
        tensor.name: _taken(tensor, len(tensor.shape) - 1, kept[tensor.name])
        for tensor in activations(graph)
    }
    ops = []
    for op in graph.ops:
        if op.kind in WEIGHTED:
            weight, bias = _constants(graph, op, alive, kept)
            op = replace(op, inputs=(op.inputs[0], weight.name, bias.name))
            tensors |= {weight.name: weight, bias.name: bias}
        elif spec_of(op).takes_constant or spec_of(op).wide_constants:
            operands: list[ir.Tensor] = []
            for name in op.inputs:
                operands.append(_operand(graph, op, name, kept, operands))
            op = replace(op, inputs=tuple(each.name for each in operands))
            tensors |= {each.name: each for each in operands if each.data is not None}
        else:
            # Constants of other ops are of channels that stand and fall together.
            tensors |= {n: graph.tensors[n] for n in op.inputs if n not in tensors}
            op = integer_spec_of(op).slimmed(op, kept[op.inputs[0]], kept[op.output])
        ops.append(op)
    return replace(graph, tensors=tensors, ops=tuple(ops))


def _operand(
    graph: ir.Graph, op: ir.Op, name: str, kept: Channels, before: Sequence[ir.Tensor]
) -> ir.Tensor:
    """Return an operand; what is left of a constant is named after the op, as others share it.

    Args:
        graph: The graph.
        op: The op.
        name: The operand.
        kept: What is left.
        before: Operands that have their names.
    """
    tensor = graph.tensors[name]
    if tensor.data is None or tensor.shape[-1] == 1:
        return tensor
    names = {*graph.tensors, *(each.name for each in before)}
    own = ir.unused_name(f"{op.output}.operand_slim", names)
    return _taken(replace(tensor, name=own), len(tensor.shape) - 1, kept[op.output])


def _constants(
    graph: ir.Graph, op: ir.Op, alive: Channels, kept: Channels
) -> tuple[ir.Tensor, ir.Tensor]:
    """Return the weights and biases that are left, named after the op: others may share them."""
    weight, bias = (graph.tensors[name] for name in op.inputs[1:])
    axis = CHANNEL_AXIS[op.kind]
    rows = np.moveaxis(graph.constant(weight.name).copy(), axis, 0)
    rows[~alive[op.output]] = 0
    name, bias_name = (
        ir.unused_name(f"{op.output}.{what}_slim", graph.tensors) for what in ("weight", "bias")
    )
    weight = replace(weight, name=name, data=np.moveaxis(rows, 0, axis))
    bias = replace(bias, name=bias_name)
    if op.kind in MIXING:
        weight = _taken(weight, len(weight.shape) - 1, kept[op.inputs[0]])
    return _taken(weight, axis, kept[op.output]), _taken(bias, 0, kept[op.output])


def _taken(tensor: ir.Tensor, axis: int, kept: Flags) -> ir.Tensor:
    """Return a tensor with some of its slices, and their scales if it has one per slice."""
    data, quantization = tensor.data, tensor.quantization
    if data is not None:
        data = np.ascontiguousarray(data.compress(kept, axis))
    if quantization is not None and quantization.axis == axis:
        scale, zero_point = (
            tuple(np.asarray(each)[kept].tolist())
            for each in (quantization.scale, quantization.zero_point)
        )
        quantization = ir.Quantization(scale, zero_point, axis)
    shape = tuple(int(kept.sum()) if i == axis else size for i, size in enumerate(tensor.shape))
    return replace(tensor, shape=shape, data=data, quantization=quantization)
