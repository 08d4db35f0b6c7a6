"""What each layer of an artifact is and costs, and how far its integers are from floats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from edge import artifact, ir
from edge.cost import op_cost
from edge.interpret import FloatArray, Int8Array, evaluate, evaluate_int8
from edge.kernels import microcode
from edge.kernels.lanes import TABLE_WORDS, entry_count
from edge.kernels.program import Goal, Pointer, Struct, compile_graph


@dataclass(frozen=True)
class Layer:
    """One op of a graph.

    Attributes:
        name: Its output.
        source: The torch module that it comes from.
        kind: What it does.
        shape: Of its output.
        weights: How many; 0 without weights.
        kept: How many of them are not zero.
        macs: Multiplications of one example if all weights were kept.
        macs_kept: Those by weights that are not zero; what its zero padding takes part in counts.
        bytes: Its constants, as the artifact holds them.
        error: Root mean square of what its integers are off, of that of the float values; None
            where it is not known.
    """

    name: str
    source: str
    kind: str
    shape: ir.Shape
    weights: int
    kept: int
    macs: int
    macs_kept: int
    bytes: int
    error: float | None

    @property
    def density(self) -> float:
        """Kept weights of all; 1 without weights."""
        return self.kept / self.weights if self.weights else 1.0


def inspect(
    found: artifact.Artifact, graph: ir.Graph, errors: Mapping[str, float] | None = None
) -> list[Layer]:
    """Describe the layers of an artifact.

    Args:
        found: The artifact.
        graph: The int8 graph that it was made from.
        errors: Output -> relative error, see `relative_errors`.
    """
    if found.target == "c99":
        sizes = _c_bytes(graph, found)
    elif found.target == "fpga":
        sizes = _fpga_bytes(graph, found)
    else:
        sizes = _plain_bytes(graph)
    return [_layer(graph, op, sizes[op.output], (errors or {})) for op in graph.ops]


def relative_errors(graph: ir.Graph, floats: ir.Graph, inputs: FloatArray) -> Mapping[str, float]:
    """Return how far the integers of each activation are from the float graph's values.

    Args:
        graph: Int8; run under our own rounding.
        floats: The float graph that it was made from; activations of other shapes are left out.
        inputs: float32 [n, c, h, w] or [n, f].

    Returns:
        Output -> root mean square of the difference, of that of the float values; none where all
        of these are 0.
    """
    examples = ir.to_graph_layout(inputs)
    real: dict[str, FloatArray] = {}
    evaluate(floats, examples, real.__setitem__)
    first = graph.tensors[graph.inputs[0]]
    integers = np.clip(np.rint(examples / np.float32(first.scale)) + first.zero_point, -128, 127)
    found: dict[str, float] = {}

    def visit(name: str, values: Int8Array) -> None:
        if name in real and real[name].shape == values.shape:
            tensor = graph.tensors[name]
            gap = tensor.scale * (values.astype(np.float32) - tensor.zero_point) - real[name]
            if size := float(np.sqrt(np.mean(np.square(real[name])))):
                found[name] = float(np.sqrt(np.mean(np.square(gap)))) / size

    evaluate_int8(graph, integers.astype(np.int8), visit=visit)
    return found


def _layer(graph: ir.Graph, op: ir.Op, size: int, errors: Mapping[str, float]) -> Layer:
    count = op_cost(graph, op)
    return Layer(
        op.output,
        op.source,
        op.kind,
        graph.tensors[op.output].shape,
        count.parameters - count.channels,
        count.kept_weights,
        count.macs,
        count.kept_macs,
        size,
        errors.get(op.output),
    )


def _fpga_bytes(graph: ir.Graph, found: artifact.Artifact) -> Counter[str]:
    """Return the bytes of each op's filters; equal lists, as those of a mean, count once."""
    code = microcode.compile_graph(graph, found.detail("lanes", int))
    bits = found.detail("gap_bits", int) + found.detail("weight_bits", int)
    sizes = Counter(dict.fromkeys((op.output for op in graph.ops), 0))
    for step in code.steps:
        if step.write is not None and step.filters:
            lists = {(each.gaps().tobytes(), each.values.tobytes()): each for each in step.filters}
            entries = sum(entry_count(each, code.gap_bits) for each in lists.values())
            sizes[step.write.name] += -(-entries * bits // 8) + 4 * TABLE_WORDS * len(step.filters)
    return sizes


def _plain_bytes(graph: ir.Graph) -> Counter[str]:
    return Counter(
        {
            op.output: sum(
                data.nbytes for name in op.inputs if (data := graph.tensors[name].data) is not None
            )
            for op in graph.ops
        }
    )


def _c_bytes(graph: ir.Graph, found: artifact.Artifact) -> Counter[str]:
    """Return the constants of calls, by the first op that a module made of each kind."""
    sizes: Counter[str] = Counter()
    owner = {op.source: op.output for op in reversed(graph.ops) if op.kind in ir.WEIGHTED}
    for call in compile_graph(graph, cast(Goal, found.detail("goal", str))).calls:
        constants = (each for each in call.arguments if isinstance(each, Pointer))
        sizes[owner.get(call.source, "")] += sum(map(_bytes, constants))
    return sizes


def _bytes(pointer: Pointer) -> int:
    return sum(_arrays(pointer.to)) if pointer.to is not None else 0


def _arrays(struct: Struct) -> Iterator[int]:
    for value in struct.fields:
        if isinstance(value, np.ndarray):
            yield value.nbytes
        elif isinstance(value, Struct):
            yield from _arrays(value)
        elif isinstance(value, Pointer):
            yield _bytes(value)
