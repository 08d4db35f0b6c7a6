"""What each layer of an artifact is and costs, and how far its integers are from floats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge import artifact
from edge.cost import op_cost
from edge.targets.export_target import plain_bytes
from edge.targets.registry import row_of
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.ops.registry import WEIGHTED, weights_of


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
    row = row_of(found.target)
    sizes = row.layer_bytes(graph, found) if row else plain_bytes(graph)
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


def masks(graph: ir.Graph) -> dict[str, NDArray[np.bool_]]:
    """Return which weights of a graph are not zero.

    Returns:
        Torch module, or output where none is known -> bool in torch's layout, [out, in] or
        [out, channels that one output reads, kernel height, kernel width].
    """
    found: dict[str, NDArray[np.bool_]] = {}
    for op in graph.ops:
        if op.kind in WEIGHTED:
            weight = graph.constant(op.inputs[1])
            kept = np.moveaxis(weights_of(op).by_channel(weight), -1, 1) != 0
            found.setdefault(op.source or op.output, kept if weight.ndim == 4 else kept[:, :, 0, 0])
    return found


def timeline(found: artifact.Artifact, graph: ir.Graph) -> str:
    """Return as SVG when the engine of an artifact does what.

    Raises:
        ExportError: A processor runs it, which decides for itself.
    """
    row = row_of(found.target)
    if row is None or row.timeline is None:
        raise ExportError(
            f"{found.path} is made for {found.target}, where no schedule is known before it runs; "
            "one of an FPGA has one: fedkit export RUN --target fpga"
        )
    return row.timeline(graph, found)
