from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkit.core.errors import WireError
from fedkit.methods.fedtiny.progressive import merge_entries, quotas, swap
from fedkit.sparse.state import ModelState, apply_masks, count_kept
from fedkit.sparse.topk import Entries
from tests.naive.sparse import swap_layer

VALUES = st.sampled_from([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0])


@st.composite
def layers(draw: st.DrawFn) -> tuple[ModelState, Entries, int]:
    size = draw(st.integers(2, 40))
    mask = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    values = draw(st.lists(VALUES, min_size=size, max_size=size))
    weights = apply_masks({"w": np.array(values, np.float32)}, {"w": mask})
    pruned = np.flatnonzero(~mask)
    sent = np.sort(np.array(draw(st.permutations(pruned.tolist())), np.int64))
    sent = sent[: draw(st.integers(0, len(sent)))]
    gradient = draw(st.lists(VALUES, min_size=len(sent), max_size=len(sent)))
    most = min(int(mask.sum()), len(pruned))
    state = ModelState(weights, {}, {"w": mask})
    return state, Entries(sent, np.array(gradient, np.float32)), draw(st.integers(0, most))


@given(layers())
def test_a_swap_equals_the_slow_one_and_keeps_the_density(
    case: tuple[ModelState, Entries, int],
) -> None:
    state, entries, amount = case
    after = swap(state, {"w": entries}, {"w": amount})
    gradient = dict(zip(entries.indices.tolist(), entries.values.tolist(), strict=True))
    expected = swap_layer(state.weights["w"].tolist(), state.masks["w"].tolist(), gradient, amount)
    assert after.masks["w"].tolist() == expected
    assert count_kept(after.masks) == count_kept(state.masks)


@given(layers())
def test_grown_weights_are_born_zero_and_kept_ones_stay(
    case: tuple[ModelState, Entries, int],
) -> None:
    state, entries, amount = case
    after = swap(state, {"w": entries}, {"w": amount})
    grown = after.masks["w"] & ~state.masks["w"]
    stayed = after.masks["w"] & state.masks["w"]
    assert (after.weights["w"][grown] == 0).all()
    assert (after.weights["w"][~after.masks["w"]] == 0).all()
    assert np.array_equal(after.weights["w"][stayed], state.weights["w"][stayed])


def test_gradients_average_by_share_and_unsent_entries_count_as_zero() -> None:
    first = {"w": Entries(np.array([1, 4]), np.array([2.0, -1.0], np.float32))}
    second = {"w": Entries(np.array([4, 6]), np.array([3.0, 8.0], np.float32))}
    merged = merge_entries([first, second], [0.75, 0.25])["w"]
    assert merged.indices.tolist() == [1, 4, 6]
    assert merged.values.tolist() == pytest.approx([1.5, 0.0, 2.0])


def test_other_layers_are_untouched() -> None:
    masks = {"w": np.array([True, False]), "v": np.array([True, False])}
    weights = {n: np.array([1.0, 0.0], np.float32) for n in masks}
    entries = {"w": Entries(np.array([1]), np.array([1.0], np.float32))}
    after = swap(ModelState(weights, {}, masks), entries, {"w": 1})
    assert after.masks["w"].tolist() == [False, True]
    assert after.masks["v"].tolist() == [True, False]
    assert after.weights["v"].tolist() == [1.0, 0.0]


def test_quotas_follow_each_layers_own_size() -> None:
    masks = {"w": np.arange(100) < 50, "v": np.arange(100) < 10}
    assert quotas(masks, ["w", "v"], step=0, last_step=10, alpha=0.3) == {"w": 15, "v": 3}


def test_a_gradient_of_a_kept_weight_is_refused() -> None:
    mask = np.array([True, False, True])
    state = ModelState({"b": mask.astype(np.float32)}, {}, {"b": mask})
    gradients = {"b": Entries(np.array([1, 2]), np.ones(2, np.float32))}
    with pytest.raises(WireError, match="b has gradients of kept weights"):
        swap(state, gradients, {"b": 1})
