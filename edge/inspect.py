"""What each layer of an artifact is and costs, and how far its integers are from floats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from edge import artifact, ir
from edge.cost import op_cost
from edge.targets.c99.calls import ConstantAddress, Goal, Struct, compile_graph
from edge.targets.fpga import microcode
from edge.targets.fpga.lanes import TABLE_WORDS, entry_count


@dataclass(frozen=True)
class OpSummary:
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
        error: Noise over signal of its integers against the float values, see
            `edge.quantize.truth`; None where it is not known.
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
) -> list[OpSummary]:
    """Describe the layers of an artifact.

    Args:
        found: The artifact.
        graph: The int8 graph that it was made from.
        errors: Output -> noise over signal; by default what the graph says of its calibration set.
    """
    if found.target == "c99":
        sizes = _c_bytes(graph, found)
    elif found.target == "fpga":
        sizes = _fpga_bytes(graph, found)
    else:
        sizes = _plain_bytes(graph)
    if errors is None:
        errors = graph.origin.noise if graph.origin else {}
    return [_layer(graph, op, sizes[op.output], errors) for op in graph.ops]


def _layer(graph: ir.Graph, op: ir.Op, size: int, errors: Mapping[str, float]) -> OpSummary:
    count = op_cost(graph, op)
    return OpSummary(
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
        constants = (each for each in call.arguments if isinstance(each, ConstantAddress))
        sizes[owner.get(call.source, "")] += sum(map(_bytes, constants))
    return sizes


def _bytes(pointer: ConstantAddress) -> int:
    return sum(_arrays(pointer.to)) if pointer.to is not None else 0


def _arrays(struct: Struct) -> Iterator[int]:
    for value in struct.fields:
        if isinstance(value, np.ndarray):
            yield value.nbytes
        elif isinstance(value, Struct):
            yield from _arrays(value)
        elif isinstance(value, ConstantAddress):
            yield _bytes(value)
