"""Counts of what moved, against sets of places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkit.sparse.changes import are_changes, changes
from fedkit.sparse.state import Masks

three = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=30)


def places(mask: Any) -> set[int]:
    return set(np.flatnonzero(mask).tolist())


@given(st.lists(three, min_size=1, max_size=4))
def test_counts_are_those_of_sets(layers: list[list[tuple[bool, bool, bool]]]) -> None:
    def masks(which: int) -> Masks:
        return {
            f"layer{n}": np.array([each[which] for each in layer]) for n, layer in enumerate(layers)
        }

    before, after, first = map(masks, range(3))
    found = changes(before, after, first)
    for name in after:
        old, new = places(before[name]), places(after[name])
        if old == new:
            assert name not in found
            continue
        assert found[name] == {
            "kept": len(new),
            "pruned": len(old - new),
            "grown": len(new - old),
            "of_first": len(new & places(first[name])),
        }
    assert are_changes(found)


def test_the_first_step_counts_every_layer_and_moves_nothing() -> None:
    after = {"a": np.array([True, False]), "b": np.zeros((2, 2), np.bool_)}
    assert changes(None, after, None) == {
        "a": {"kept": 1, "pruned": 0, "grown": 0},
        "b": {"kept": 0, "pruned": 0, "grown": 0},
    }
    assert changes(after, after, None) == {}


GOOD = {"kept": 1, "pruned": 0, "grown": 0}
BAD: list[Any] = [
    None, [], 5, {"a": 5}, {"a": {}}, {"a": {**GOOD, "x": 1}}, {"a": {**GOOD, "kept": -1}},
    {"a": {**GOOD, "kept": True}}, {"a": {**GOOD, "kept": 1.0}}, {"a": {**GOOD, "kept": 2**63}},
]  # fmt: skip


@pytest.mark.parametrize("value", BAD, ids=repr)
def test_what_is_not_counts_is_not_taken(value: Any) -> None:
    assert not are_changes(value)
    assert are_changes({"a": GOOD, "b": {**GOOD, "of_first": 0}}) and are_changes({})
