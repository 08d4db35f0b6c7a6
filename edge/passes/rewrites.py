"""All rewrites of the float graph that have a name, in the order in which they are applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from edge.passes import (
    affine_forward,
    fold_bn,
    ln_affine_fold,
    ln_freeze,
    ln_to_rms,
    lowrank_merge,
    merge_affines,
    residual_scale_fold,
    rms_to_crms,
)
from edge.passes.rewrite import Hints, Place, Rewrite
from fedkit.core.errors import ExportError
from fedkit.graph import ir

EXACT = "exact"
"""Stands for all exact rewrites that need not be named."""


def _first(
    match: Callable[[ir.Graph], Any], where: Callable[[Any], ir.Op]
) -> Callable[[ir.Graph, Hints], Iterator[Place]]:
    """Return the places of a pass that finds one at a time."""

    def places(graph: ir.Graph, given: Hints) -> Iterator[Place]:
        if (found := match(graph)) is not None:
            op = where(found)
            yield Place(op.output, op.source or op.output, found=found)

    return places


_ROWS = (
    Rewrite(
        "merge_affines",
        "a sum of two scaled values of one activation becomes one scale and shift",
        "both are a scale and a shift per channel of that activation: RepBN, x + BatchNorm(x)",
        exact=True,
        places=_first(merge_affines.match, lambda found: found.op),
        transform=merge_affines.transform,
        always=True,
    ),
    Rewrite(
        "fold_bn",
        "a BatchNorm, or what else scales and shifts channels, goes into the layer before it",
        "the layer is a convolution, a linear layer or a norm, and nothing else reads its result",
        exact=True,
        places=_first(fold_bn.match, lambda found: found.norm),
        transform=fold_bn.transform,
        always=True,
    ),
    residual_scale_fold.REWRITE,
    ln_to_rms.REWRITE,
    rms_to_crms.REWRITE,
    ln_freeze.REWRITE,
    affine_forward.REWRITE,
    ln_affine_fold.REWRITE,
    lowrank_merge.REWRITE,
)

REWRITES: Mapping[str, Rewrite] = {row.kind: row for row in _ROWS}
"""Name -> row."""


def asked(names: Sequence[str]) -> tuple[Rewrite, ...]:
    """Return the rewrites of some names, and those that every export applies, in their order.

    Args:
        names: Of `REWRITES`, in any order; "exact" stands for several.

    Raises:
        ExportError: There is none of a name.
    """
    for name in names:
        if name != EXACT and name not in REWRITES:
            raise ExportError(
                f"rewrites names {name!r}; give some of {EXACT}, {', '.join(REWRITES)}"
            )
    several = EXACT in names
    return tuple(
        row
        for row in REWRITES.values()
        if row.always or row.kind in names or (several and row.exact and not row.opt_in)
    )
