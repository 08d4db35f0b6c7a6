"""All kinds of ops of the float graph: one row each, see `fedkit.graph.spec`.

A kind is added as a row in `SPECS` of a file of this package. It is found here.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedkit.core.gather import gather
from fedkit.graph import ir, ops
from fedkit.graph.spec import Aten, Onnx, Spec

SPECS: Mapping[ir.Kind, Spec] = gather(
    ops, Spec, first=("weighted", "elementwise", "moves", "pool", "reduce")
)
"""Kind -> row."""

WEIGHTED = frozenset(kind for kind, spec in SPECS.items() if spec.weights)
"""Kinds with inputs (activation, weight, bias)."""

FUSES_ACTIVATION = frozenset(kind for kind, spec in SPECS.items() if spec.fuses_activation)
KEEPS_SCALE = frozenset(kind for kind, spec in SPECS.items() if spec.scale == "kept")
WINDOWED = frozenset(kind for kind, spec in SPECS.items() if spec.has_window)

CHANNEL_AXIS: Mapping[ir.Kind, int] = {
    kind: spec.weights.axis for kind, spec in SPECS.items() if spec.weights
}
"""Kind -> axis of the output channels in its weights."""

LAYERS = tuple(dict.fromkeys(spec.layer for spec in SPECS.values() if not spec.only_trains))
"""What messages call the layers that become ops."""

ATEN: Mapping[str, Aten] = {k: read for spec in SPECS.values() for k, read in spec.aten.items()}
ONNX: Mapping[str, Onnx] = {k: read for spec in SPECS.values() for k, read in spec.onnx.items()}
"""Operator -> what reads it, of those that the rows read themselves."""


def spec_of(op: ir.Op) -> Spec:
    """Return the row of an op's kind, which `fedkit.graph.verify` has checked to exist."""
    return SPECS[op.kind]


def infer_shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    """Return the shape that `op` gives its output."""
    return spec_of(op).shape(graph, op)
