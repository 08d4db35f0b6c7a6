"""All kinds of ops of int8 graphs: one row each, see `edge.ops.integer_spec`.

A kind is added as a row in `SPECS` of a file of this package. It is found here.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge import ops
from edge.ops.integer_spec import IntegerSpec
from fedkit.core.errors import ExportError
from fedkit.core.gather import gather
from fedkit.graph import ir

SPECS: Mapping[ir.Kind, IntegerSpec] = gather(ops, IntegerSpec)
"""Kind -> row; `affine` has none, as it is folded before a graph is quantised."""


def check_forms(graph: ir.Graph, target: str) -> None:
    """Look whether a target has a form of every kind of op, before any work.

    Args:
        graph: Float, optimised.
        target: One of ours; of others nothing is known here.

    Raises:
        ExportError: It has none of some; names all of them.
    """
    missing: dict[str, str] = {}
    for op in graph.ops:
        if op.kind in SPECS and getattr(SPECS[op.kind], target, op) is None:
            missing.setdefault(op.kind, op.source or "(model)")
    if missing:
        named = ", ".join(f"{kind} (module {source!r})" for kind, source in missing.items())
        raise ExportError(
            f"the {target} target has nothing for {named}: export for another target, or change "
            f"these layers"
        )


def spec_of(op: ir.Op) -> IntegerSpec:
    """Return the row of an op of an int8 graph.

    Raises:
        ExportError: The kind has none.
    """
    if op.kind not in SPECS:
        raise ExportError(
            f"op {op.kind} of module {op.source!r} has no integer form; optimise the graph before "
            f"it is quantised, or give the kind a row in edge/ops"
        )
    return SPECS[op.kind]
