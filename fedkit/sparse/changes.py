"""Which weights a step moved: counts of each layer, which cost nothing to keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedkit.sparse.bits import Bits, ones
from fedkit.sparse.packed import packed
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
    now, known = packed(after), packed(after if before is None else before)
    began = None if first is None else packed(first)
    return {
        name: _layer(bits, known.bits[name], None if began is None else began.bits[name])
        for name, bits in now.bits.items()
        if before is None or not now.same(known, name)
    }


def _layer(after: Bits, before: Bits, first: Bits | None) -> dict[str, int]:
    kept, both = ones(after), ones(after & before)
    found = {"kept": kept, "pruned": ones(before) - both, "grown": kept - both}
    return found if first is None else found | {"of_first": ones(after & first)}


def are_changes(value: Any) -> bool:
    """Whether a value that somebody wrote is what `changes` returns."""
    return isinstance(value, dict) and all(map(_is_layer, value.values()))


def _is_layer(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() - {"of_first"} == {"kept", "pruned", "grown"}
        and all(type(n) is int and 0 <= n < 2**63 for n in value.values())
    )
