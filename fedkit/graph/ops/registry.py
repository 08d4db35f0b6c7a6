"""All kinds of ops of the float graph: one row each, see `fedkit.graph.spec`.

A kind is added as a row in `SPECS` of a file of this package. It is found here.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module

from fedkit.core.errors import ExportError
from fedkit.graph import ir, ops
from fedkit.graph.spec import Spec

_ORDER = ("weighted", "elementwise", "moves", "pool", "reduce")
"""How tables begin; of other families the name decides."""


def _found() -> Iterator[Spec]:
    names = [module.name for module in pkgutil.iter_modules(ops.__path__) if module.name != _OWN]
    for name in sorted(names, key=_place):
        yield from import_module(f"{ops.__name__}.{name}").SPECS


def _place(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER)), name


def _gather() -> dict[ir.Kind, Spec]:
    table: dict[ir.Kind, Spec] = {}
    for spec in _found():
        if spec.kind in table:
            raise ExportError(f"two rows in fedkit.graph.ops are of kind {spec.kind!r}; rename one")
        table[spec.kind] = spec
    return table


_OWN = __name__.rpartition(".")[2]

SPECS: Mapping[ir.Kind, Spec] = _gather()
"""Kind -> row."""

WEIGHTED = frozenset(kind for kind, spec in SPECS.items() if spec.weights)
"""Kinds with inputs (activation, weight, bias)."""

CHANNEL_AXIS: Mapping[ir.Kind, int] = {
    kind: spec.weights.axis for kind, spec in SPECS.items() if spec.weights
}
"""Kind -> axis of the output channels in its weights."""

LAYERS = tuple(dict.fromkeys(spec.layer for spec in SPECS.values()))
"""What messages call the layers that become ops."""


def spec_of(op: ir.Op) -> Spec:
    """Return the row of an op's kind, which `fedkit.graph.verify` has checked to exist."""
    return SPECS[op.kind]
