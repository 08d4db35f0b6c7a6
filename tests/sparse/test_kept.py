"""Kept values and a bit per weight, beside the dense arrays that they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkit.config import make_config
from fedkit.core.errors import WireError
from fedkit.methods.fedtiny.progressive import quotas, swap
from fedkit.server.aggregation import aggregate, shares
from fedkit.sparse.changes import changes
from fedkit.sparse.kept import held, joined, kept_weights, nothing, shapes_of
from fedkit.sparse.layout import Layout
from fedkit.sparse.masks import layer_masks
from fedkit.sparse.packed import packed
from fedkit.sparse.part import Part
from fedkit.sparse.state import ModelState, count_kept, masks_digest, same_masks
from fedkit.sparse.topk import Entries
from fedkit.wire import codec, messages
from fedkit.wire.messages import Update
from tests.naive.aggregation import mean_over_keepers
from tests.sparse.sparse_models import (
    PRUNABLE,
    SHAPES,
    assert_same,
    compact,
    dense_models,
    held_values,
)

LAYOUT = Layout(SHAPES, {"norm.running_mean": (3,)}, PRUNABLE)


@given(dense_models())
def test_a_compact_model_is_the_dense_one_when_it_is_looked_up(models: list[ModelState]) -> None:
    (dense,) = models
    found = compact(dense)
    assert_same(found, dense)
    assert same_masks(found.masks, dense.masks)
    assert masks_digest(found.masks) == masks_digest(dense.masks)
    assert found.density == dense.density
    assert count_kept(found.masks) == {n: int(m.sum()) for n, m in dense.masks.items()}
    rest = sum(math.prod(s) for n, s in SHAPES.items() if n not in PRUNABLE)
    assert held_values(found) == rest + sum(int(mask.sum()) for mask in dense.masks.values())


@given(dense_models(1))
def test_other_masks_keep_what_both_keep(models: list[ModelState]) -> None:
    dense, other = models
    expected = dense.with_masks(other.masks)  # by np.where
    assert_same(compact(dense).with_masks(packed(other.masks)), expected)
    assert_same(compact(dense).with_masks(other.masks), expected)


@given(dense_models(), st.sets(st.sampled_from(sorted(SHAPES))))
def test_masks_of_some_layers_alone_leave_the_others_whole(
    models: list[ModelState], names: set[str]
) -> None:
    (dense,) = models
    some = {name: mask for name, mask in dense.masks.items() if name in names}
    for weights in (dense.weights, compact(dense).weights):
        found = kept_weights(weights, some)
        assert all(found[n].tobytes() == dense.weights[n].tobytes() for n in dense.weights)
        assert set(found.masks) == set(some)


@given(dense_models(1), st.sets(st.sampled_from(sorted(SHAPES))))
def test_parts_of_two_models_are_joined(models: list[ModelState], names: set[str]) -> None:
    one, other = (compact(model) for model in models)
    part = Part.of_names(LAYOUT, names)
    found = part.into(one, part.of(other))
    for name in SHAPES:
        expected = (models[1] if name in names else models[0]).weights[name]
        assert found.weights[name].tobytes() == expected.tobytes()
    taken = kept_weights(other.weights, other.masks).only(names)
    again = joined(kept_weights(one.weights, one.masks), taken)
    assert list(again) == list(SHAPES)
    assert all(again[n].tobytes() == found.weights[n].tobytes() for n in SHAPES)


@given(dense_models())
def test_nothing_becomes_zeros_under_any_masks(models: list[ModelState]) -> None:
    (dense,) = models
    none = nothing(SHAPES)
    assert sum(value.size for value in held(none).values()) == 0
    assert shapes_of(none) == SHAPES
    zeros = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    assert all(none[name].tobytes() == zeros[name].tobytes() for name in SHAPES)
    expected = codec.encode_values(zeros, dense.masks)
    assert codec.encode_values(none, dense.masks).tobytes() == expected.tobytes()


# On the wire ---------------------------------------------------------------------------------


@given(dense_models(1), st.booleans())
def test_a_compact_model_travels_in_the_same_bytes(models: list[ModelState], known: bool) -> None:
    dense, before = models
    base = before.masks if known else None
    expected = messages.pack_state(dense, base)
    found = messages.pack_state(compact(dense), None if base is None else packed(base))
    assert found.numbers == expected.numbers
    assert {n: a.tobytes() for n, a in found.arrays.items()} == {
        n: a.tobytes() for n, a in expected.arrays.items()
    }
    read = messages.read_state(found, LAYOUT, base)
    assert_same(read, dense)
    rest = sum(math.prod(s) for n, s in SHAPES.items() if n not in PRUNABLE)
    assert held_values(read) == rest + sum(count_kept(dense.masks).values())


@given(dense_models())
def test_values_are_rounded_as_they_travel(models: list[ModelState]) -> None:
    (dense,) = models
    found = messages.as_received(compact(dense), "fp16")
    expected = {n: v.astype(np.float16).astype(np.float32) for n, v in dense.weights.items()}
    assert_same(found, ModelState(expected, {}, dense.masks))


# Algorithms ----------------------------------------------------------------------------------


@given(dense_models(), st.data())
def test_the_largest_of_kept_weights_are_the_largest_of_all(
    models: list[ModelState], data: st.DataObject
) -> None:
    """Zeros that are kept tie with pruned ones; then, and only then, the lower position counts."""
    (dense,) = models
    counts = {n: data.draw(st.integers(0, dense.masks[n].size), label=n) for n in PRUNABLE}
    expected = layer_masks(dense.weights, counts)
    found = layer_masks(compact(dense).weights, counts)
    assert list(found) == list(expected) == list(PRUNABLE)
    assert all(found[n].tolist() == expected[n].tolist() for n in PRUNABLE)


@given(dense_models(), st.integers(0, 2**32 - 1))
def test_a_swap_of_compact_models_is_that_of_dense_ones(
    models: list[ModelState], seed: int
) -> None:
    (dense,) = models
    rng = np.random.default_rng(seed)
    gradients = {}
    for name in PRUNABLE:
        pruned = np.flatnonzero(~dense.masks[name])
        chosen = np.sort(rng.permutation(pruned)[: rng.integers(0, len(pruned) + 1)])
        gradients[name] = Entries(chosen, rng.standard_normal(len(chosen), np.float32))
    amounts = quotas(packed(dense.masks), PRUNABLE, 0, 1, 0.8)
    assert amounts == quotas(dense.masks, PRUNABLE, 0, 1, 0.8)
    assert_same(swap(compact(dense), gradients, amounts), swap(dense, gradients, amounts))


@given(dense_models())
def test_gradients_of_kept_weights_grow_nothing(models: list[ModelState]) -> None:
    (dense,) = models
    kept = np.flatnonzero(dense.masks["fc.weight"])
    gradients = {"fc.weight": Entries(kept[:1], np.ones(len(kept[:1]), np.float32))}
    if len(kept):
        with pytest.raises(WireError, match="only pruned ones can grow"):
            swap(compact(dense), gradients, {"fc.weight": 1})


@given(dense_models(3), st.booleans())
def test_a_merge_is_that_of_a_slow_reference(models: list[ModelState], alike: bool) -> None:
    """Each weight is the mean of those that keep it, bit for bit; of dense models and compact."""
    if alike:
        models = [model.with_masks(models[0].masks) for model in models]
    config = make_config({"aggregation": "mean"})
    parts = [Update(model, n, 0.0, {}) for n, model in enumerate(map(_without_stats, models), 1)]
    expected = mean_over_keepers([model for model in models], shares(parts))
    assert_same(aggregate(config, parts, shares(parts)), expected)
    held_ones = [Update(compact(part.state), part.examples, 0.0, {}) for part in parts]
    merged = aggregate(config, held_ones, shares(parts))
    assert_same(merged, expected)
    rest = sum(math.prod(s) for n, s in SHAPES.items() if n not in PRUNABLE)
    assert held_values(merged) == rest + sum(count_kept(expected.masks).values())


@pytest.mark.parametrize("rule", ["median", "trimmed"])
@given(models=dense_models(4))
def test_a_robust_merge_of_compact_models_is_that_of_dense_ones(
    rule: str, models: list[ModelState]
) -> None:
    config = make_config({"aggregation": rule})
    found, expected = (
        aggregate(config, [Update(model, 1, 0.0, {}) for model in kind], [0.2] * 5)
        for kind in ([compact(_without_stats(m)) for m in models], map(_without_stats, models))
    )
    assert_same(found, expected)


@given(dense_models(2))
def test_changes_are_counted_in_bits(models: list[ModelState]) -> None:
    first, before, after = (model.masks for model in models)
    found = changes(packed(before), packed(after), packed(first))
    assert found == changes(before, after, first)
    for name in PRUNABLE:
        if np.array_equal(before[name], after[name]):
            assert name not in found
        else:
            assert found[name] == {
                "kept": int(after[name].sum()),
                "pruned": int((before[name] & ~after[name]).sum()),
                "grown": int((after[name] & ~before[name]).sum()),
                "of_first": int((after[name] & first[name]).sum()),
            }


def _without_stats(state: ModelState) -> ModelState:
    return ModelState(state.weights, {}, state.masks)
