"""Which weights a step moved: counts of each layer, which cost nothing to keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.sparse.state import Masks

Changes = Mapping[str, Mapping[str, int]]
"""Layer -> `kept` weights, `pruned` and `grown` ones, and `of_first`: those kept that the first
masks kept too, where these are known."""


def changes(before: Masks | None, after: Masks, first: Masks | None) -> Changes:
    """Count what changed from one set of masks to the next.

    Args:
        before: Masks before the step; None counts every layer of `after`, with nothing moved.
        after: Masks after it.
        first: Those of the first model that devices trained; None where they are not known.

    Returns:
        The layers that changed, in the model's order.
    """
    known = after if before is None else before
    return {
        name: _layer(mask, known[name], None if first is None else first[name])
        for name, mask in after.items()
        if before is None or not _same(known[name], mask)
    }


def _same(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    return one is other or np.array_equal(one, other)


def _layer(
    after: NDArray[np.bool_], before: NDArray[np.bool_], first: NDArray[np.bool_] | None
) -> dict[str, int]:
    kept, both = int(np.count_nonzero(after)), int(np.count_nonzero(after & before))
    found = {"kept": kept, "pruned": int(np.count_nonzero(before)) - both, "grown": kept - both}
    return found if first is None else found | {"of_first": int(np.count_nonzero(after & first))}


def are_changes(value: Any) -> bool:
    """Whether a value that somebody wrote is what `changes` returns."""
    return isinstance(value, dict) and all(map(_is_layer, value.values()))


def _is_layer(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() - {"of_first"} == {"kept", "pruned", "grown"}
        and all(type(n) is int and 0 <= n < 2**63 for n in value.values())
    )
