"""Robust means against slow references, and what they bear."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedkit.config import make_config
from fedkit.methods.fedtiny.progressive import merge_entries
from fedkit.server.aggregation import aggregate, shares
from fedkit.sparse.state import ModelState
from fedkit.sparse.topk import Entries
from fedkit.stats.moments import Moments
from fedkit.stats.norms import merge_losses, merge_norms
from fedkit.stats.robust import Aggregation, middle
from fedkit.wire.messages import Update

VALUES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 9), st.integers(1, 4)),
    elements=st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))),
)


def slow(values: list[float], rule: Aggregation) -> float:
    known = sorted(value for value in values if value == value)
    if not known:
        return 0.0
    if rule == "median":
        return float(np.median(known))
    cut = min(max(1, len(known) // 5), (len(known) - 1) // 2)
    return float(np.mean(known[cut : len(known) - cut]))


@pytest.mark.parametrize("rule", ["median", "trimmed"])
@given(VALUES)
def test_the_middle_is_that_of_a_slow_reference(
    rule: Aggregation, values: np.ndarray[tuple[int, int], np.dtype[np.float64]]
) -> None:
    expected = [slow(list(column), rule) for column in values.T]
    np.testing.assert_allclose(middle(values, rule), expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(("rule", "liars"), [("median", 3), ("trimmed", 1)])
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 2**32 - 1))
def test_few_liars_cannot_move_it_out_of_what_the_others_say(
    rule: Aggregation, liars: int, lie: float, seed: int
) -> None:
    honest = np.random.default_rng(seed).standard_normal((7 - liars, 5))
    both = np.concatenate([honest, np.full((liars, 5), lie)])
    found = middle(both, rule)
    assert (found >= honest.min(axis=0)).all() and (found <= honest.max(axis=0)).all()


def update(value: float, mask: list[bool]) -> Update:
    kept = np.array(mask)
    weights = {"w": np.where(kept, value, 0).astype(np.float32), "b": np.array([value], np.float32)}
    stats = {
        "n.running_mean": np.array([value], np.float32),
        "n.running_var": np.array([value**2], np.float32),
    }
    return Update(ModelState(weights, stats, {"w": kept}), 10, 0.0, {})


def test_who_prunes_a_weight_has_no_say_in_it() -> None:
    updates = [
        update(1.0, [True, True, False]),
        update(2.0, [True, True, False]),
        update(30.0, [True, False, True]),
    ]
    merged = aggregate(make_config({"aggregation": "median"}), updates, shares(updates))
    assert merged.weights["w"].tolist() == [2.0, 1.5, 30.0]
    assert merged.weights["b"].tolist() == [2.0]
    assert merged.masks["w"].all()
    assert merged.stats["n.running_mean"].tolist() == [2.0]
    assert merged.stats["n.running_var"].tolist() == [4.0]


def test_a_number_of_examples_that_is_claimed_weighs_nothing() -> None:
    losses = [[1.0, 2.0], [1.1, 2.1], [9.0, 0.0]]
    assert merge_losses(losses, [1, 1, 10**9], "median").tolist() == [1.1, 2.0]
    parts = [
        {"n": Moments.from_variance(n, np.array([m]), np.array([1.0]))}
        for n, m in ((1, 0.0), (1, 1.0), (10**9, 50.0))
    ]
    assert merge_norms(parts, "pooled", "median")["n"].mean.tolist() == [1.0]


def test_weights_grow_that_most_devices_ask_for() -> None:
    def asks(**values: float) -> dict[str, Entries]:
        indices = np.array([int(name[1:]) for name in values])
        return {"w": Entries(indices, np.array(list(values.values()), np.float32))}

    devices = [asks(i1=1.0, i5=2.0), asks(i1=3.0), asks(i1=2.0, i7=1e9)]
    merged = merge_entries(devices, [1 / 3] * 3, "median")["w"]
    assert merged.indices.tolist() == [1] and merged.values.tolist() == [2.0]
