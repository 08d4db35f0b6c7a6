"""States compared bit by bit."""

from __future__ import annotations

from fedkit.sparse.state import ModelState


def same_bits(one: ModelState, other: ModelState) -> bool:
    return all(
        list(getattr(one, kind)) == list(getattr(other, kind))
        and all(a.tobytes() == getattr(other, kind)[n].tobytes() for n, a in arrays.items())
        for kind in ("weights", "stats", "masks")
        for arrays in [getattr(one, kind)]
    )
