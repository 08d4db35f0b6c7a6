"""All kinds of ops of the float graph: one row each, see `fedkit.graph.spec`.

A kind is added as a row in `SPECS` of a file of this package. It is found here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from fedkit.core.errors import ExportError
from fedkit.core.gather import gather
from fedkit.graph import ir, ops
from fedkit.graph.spec import Aten, Onnx, Spec, Weights

SPECS: Mapping[ir.Kind, Spec] = gather(
    ops, Spec, first=("weighted", "elementwise", "arithmetic", "moves", "pool", "reduce")
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

VIEWS = frozenset(name for spec in SPECS.values() if spec.is_view for name in spec.aten)
"""Operators of torch that only say a shape anew."""


Reader = TypeVar("Reader")


def readers(rows: Iterable[tuple[ir.Kind, Mapping[str, Reader]]]) -> Mapping[str, Reader]:
    """Return operator -> what reads it.

    Args:
        rows: Kinds with the operators that may become them.

    Raises:
        ExportError: Two rows read an operator in two ways.
    """
    table: dict[str, Reader] = {}
    owner: dict[str, ir.Kind] = {}
    for kind, found in rows:
        for name, read in found.items():
            if table.setdefault(name, read) is not read:
                raise ExportError(
                    f"the rows {owner[name]} and {kind} read {name} by two functions; give both "
                    f"rows one that adds the right op"
                )
            owner.setdefault(name, kind)
    return table


ATEN: Mapping[str, Aten] = readers((spec.kind, spec.aten) for spec in SPECS.values())
ONNX: Mapping[str, Onnx] = readers((spec.kind, spec.onnx) for spec in SPECS.values())


def spec_of(op: ir.Op) -> Spec:
    """Return the row of an op's kind, which `fedkit.graph.verify` has checked to exist."""
    return SPECS[op.kind]


def weights_of(op: ir.Op) -> Weights:
    """Return how the weights lie of an op of `WEIGHTED`."""
    found = spec_of(op).weights
    assert found is not None  # what has none is not of that set
    return found


def tokens_of(graph: ir.Graph) -> int:
    """Return how many tokens there are to the input of a graph; 0 if that is of real numbers."""
    tables = [op.inputs[1] for op in graph.ops if spec_of(op).looks_up]
    return min((len(graph.constant(name)) for name in tables), default=0)


def groups_of(graph: ir.Graph, op: ir.Op) -> int:
    """Return in how many groups an op of `WEIGHTED` reads channels."""
    x, weight = (graph.tensors[name].shape for name in op.inputs[:2])
    return weights_of(op).groups(x[-1], weight)


def infer_shape(graph: ir.Graph, op: ir.Op) -> ir.Shape:
    """Return the shape that `op` gives its output."""
    return spec_of(op).shape(graph, op)
