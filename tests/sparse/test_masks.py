from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedkit.core.errors import ConfigError
from fedkit.sparse.masks import global_masks, kept_first, layer_masks
from tests.naive import sparse as naive

# Few distinct magnitudes, so that ties are the rule.
SCORES = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=12)
ANY = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12)
LAYERS = st.lists(SCORES | ANY, min_size=1, max_size=4).map(
    lambda layers: dict(zip("abcd", layers, strict=False))
)


def as_arrays(layers: dict[str, list[float]]) -> dict[str, NDArray[np.float32]]:
    return {name: np.array([scores], np.float32) for name, scores in layers.items()}


@given(LAYERS, st.data())
def test_a_layer_keeps_what_sorting_keeps(
    layers: dict[str, list[float]], data: st.DataObject
) -> None:
    counts = {name: data.draw(st.integers(0, len(s) + 1)) for name, s in layers.items()}
    masks = layer_masks(as_arrays(layers), counts)
    for name, scores in layers.items():
        assert masks[name].shape == (1, len(scores))
        assert masks[name][0].tolist() == naive.layer_mask(scores, counts[name])


@given(LAYERS, st.data())
def test_all_layers_together_keep_what_sorting_keeps(
    layers: dict[str, list[float]], data: st.DataObject
) -> None:
    total = sum(map(len, layers.values()))
    count = data.draw(st.integers(1, total))
    exempt = data.draw(st.lists(st.sampled_from(["first", "last", *layers]), max_size=2))
    names = list(layers)
    whole = {{"first": names[0], "last": names[-1]}.get(entry, entry) for entry in exempt}
    keep = {
        name: data.draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s)))
        if data.draw(st.booleans())
        else [False] * len(s)
        for name, s in layers.items()
    }
    given_keep = {name: np.array([flags]) for name, flags in keep.items()}
    expected = naive.global_masks(layers, count, whole, keep)
    if expected is None:
        with pytest.raises(ConfigError, match=f"{count} kept weights cannot hold .*raise density"):
            global_masks(as_arrays(layers), count, exempt, given_keep)
        return
    found = global_masks(as_arrays(layers), count, exempt, given_keep)
    assert {name: mask[0].tolist() for name, mask in found.items()} == expected
    assert sum(int(mask.sum()) for mask in found.values()) == count


def test_without_masks_to_keep_each_layer_keeps_its_best() -> None:
    scores = {"a": np.array([9.0, 8.0, 7.0]), "b": np.array([0.1, -0.2])}
    found = global_masks(scores, 3)
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "a": [True, True, False],
        "b": [False, True],
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_without_order_are_refused_by_layer(bad: float) -> None:
    with pytest.raises(ConfigError, match="scores of b hold NaN or infinite"):
        global_masks({"a": np.ones(3), "b": np.array([1.0, bad])}, 2)


@given(SCORES, st.data())
def test_what_is_kept_comes_first(scores: list[float], data: st.DataObject) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    mask, array = {"w": np.array(flags)}, np.array(scores, np.float32) * np.array(flags)
    count = data.draw(st.integers(0, len(scores)))
    chosen = layer_masks(kept_first({"w": array}, mask), {"w": count})["w"]
    order = sorted(range(len(scores)), key=lambda i: (not flags[i], -abs(array[i]), i))
    assert np.flatnonzero(chosen).tolist() == sorted(order[:count])
