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
