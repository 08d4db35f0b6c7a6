"""Models compared bit by bit."""

from __future__ import annotations

from fedkit.sparse.state import ModelState


def assert_same_bits(one: ModelState, other: ModelState) -> None:
    for kind in ("weights", "stats", "masks"):
        mine, theirs = getattr(one, kind), getattr(other, kind)
        assert list(mine) == list(theirs)
        assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine), kind
