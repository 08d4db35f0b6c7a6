"""Which tensors a text stands for, and what a part of a model is."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fedkit.core.errors import ConfigError
from fedkit.sparse.layout import Layout
from fedkit.sparse.part import Part, chosen
from fedkit.sparse.state import ModelState

LAYOUT = Layout(
    {
        "conv.weight": (2, 1, 3, 3),
        "bn.weight": (2,),
        "bn.bias": (2,),
        "ln.weight": (2,),
        "fc.0.weight": (3, 2),
        "fc.0.bias": (3,),
    },
    {"bn.running_mean": (2,), "bn.running_var": (2,)},
    ("conv.weight", "fc.0.weight"),
)
NORMS = frozenset({"bn.weight", "bn.bias", "ln.weight"})
STATS = frozenset(LAYOUT.stats)
HEAD = {"fc.0.weight", "fc.0.bias"}


@pytest.mark.parametrize(
    ("which", "names"),
    [
        ("norm", NORMS | STATS),
        ("head", HEAD),
        ("norm+head", NORMS | STATS | HEAD),
        ("head+norm", NORMS | STATS | HEAD),
        (r"bn\..*", {"bn.weight", "bn.bias"} | STATS),
        (r".*bias", {"bn.bias", "fc.0.bias"}),
        (r"conv\.weight|fc\.0\.bias", {"conv.weight", "fc.0.bias"}),
    ],
)
def test_a_text_stands_for_tensors(which: str, names: set[str]) -> None:
    assert chosen("local", which, LAYOUT, NORMS) == names


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("weight", "no such tensor"),  # whole names, not parts of them
        ("norms", "no such tensor"),
        ("norm+tail", "no such tensor"),
        ("(", "not a regular expression"),
        ("a{99999999999}", "not a regular expression"),
        ("+", "not a regular expression"),
    ],
)
def test_what_names_nothing_is_refused(which: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^train is {re.escape(repr(which))}.*{said}"):
        chosen("train", which, LAYOUT, NORMS)


def test_a_model_without_norms_has_none_to_keep() -> None:
    bare = Layout({"fc.weight": (3, 2)}, {}, ("fc.weight",))
    with pytest.raises(ConfigError, match="no such tensor"):
        chosen("local", "norm", bare, frozenset())


def state(seed: int) -> ModelState:
    rng = np.random.default_rng(seed)
    weights, stats = (
        {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
        for shapes in (LAYOUT.weights, LAYOUT.stats)
    )
    masks = {name: rng.random(shape) < 0.5 for name, shape in LAYOUT.prunable_shapes.items()}
    return ModelState(weights, stats, masks).with_masks(masks)


@pytest.mark.parametrize("names", [HEAD, NORMS | STATS, {"conv.weight", "bn.running_var"}, set()])
def test_a_part_is_taken_out_of_a_model_and_put_into_another(names: set[str]) -> None:
    one, other = state(0), state(1)
    part = Part.of_names(LAYOUT, names)
    taken = part.of(one)
    assert {*taken.weights, *taken.stats} == names
    assert list(taken.masks) == [name for name in LAYOUT.prunable if name in names]
    mixed = part.into(other, taken)
    for kind in ("weights", "stats", "masks"):
        found, of_part, of_other = (vars(each)[kind] for each in (mixed, one, other))
        assert list(found) == list(of_other)
        expected = {n: (of_part if n in names else of_other)[n] for n in found}
        assert all(np.array_equal(found[n], expected[n]) for n in found)


def test_all_of_a_model_is_itself() -> None:
    part, one = Part.of_names(LAYOUT, {*LAYOUT.weights, *LAYOUT.stats}), state(0)
    assert part.whole
    assert part.of(one) is one
    assert part.into(state(1), one) is one
