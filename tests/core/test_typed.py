"""Dataclasses from JSON: each type as it is, and everything else refused with its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkit.core.typed import Typed, TypedError


class Shape:
    """Stands for those below."""


@dataclass(frozen=True)
class Circle(Shape):
    radius: float
    kind: Literal["circle"] = "circle"


@dataclass(frozen=True)
class Box(Shape):
    size: tuple[int, int]
    name: str | None = None
    kind: Literal["box"] = "box"


@dataclass(frozen=True)
class Picture:
    shapes: tuple[Shape, ...]
    widths: dict[str, Sequence[float]]
    first: Box | None = None
    plain: bool = False
    layers: Literal[1, 2] = 1


TYPED = Typed({Shape: {"circle": Circle, "box": Box}})
CIRCLES = st.builds(Circle, st.floats(allow_nan=False))
BOXES = st.builds(Box, st.tuples(st.integers(), st.integers()), st.none() | st.text())
PICTURES = st.builds(
    Picture,
    st.lists(CIRCLES | BOXES).map(tuple),
    st.dictionaries(st.text(), st.lists(st.floats(allow_nan=False)).map(tuple)),
    st.none() | BOXES,
    st.booleans(),
    st.sampled_from([1, 2]),
)


@given(PICTURES)
def test_what_is_written_is_read(picture: Picture) -> None:
    assert TYPED.read(Picture, json.loads(json.dumps(asdict(picture)))) == picture


WRONG: dict[str, tuple[Any, tuple[str | int, ...], Any, str]] = {
    "a list": ([], (), [], "an object"),
    "a missing field": ({"shapes": []}, ("widths",), MISSING, "required"),
    "an unknown field": ({"shapes": [], "widths": {}, "x": 1}, ("x",), 1, "no such field"),
    "a text": ({"shapes": "ab", "widths": {}}, ("shapes",), "ab", "a list"),
    "no kind": ({"shapes": [{}], "widths": {}}, ("shapes", 0), {}, "circle, box"),
    "a kind that is a list": (
        {"shapes": [{"kind": []}], "widths": {}},
        ("shapes", 0),
        {"kind": []},
        "circle, box",
    ),
    "too few": (
        {"shapes": [{"kind": "box", "size": [1]}], "widths": {}},
        ("shapes", 0, "box", "size", 1),
        MISSING,
        "required",
    ),
    "too many": (
        {"shapes": [], "widths": {}, "first": {"size": [1, 2, 3]}},
        ("first", "size"),
        [1, 2, 3],
        "2 items",
    ),
    "a number with a fraction": (
        {"shapes": [], "widths": {}, "first": {"size": [1, 2.0]}},
        ("first", "size", 1),
        2.0,
        "a valid integer",
    ),
    "a truth": (
        {"shapes": [], "widths": {}, "first": {"size": [1, True]}},
        ("first", "size", 1),
        True,
        "a valid integer",
    ),
    "a number as a truth": (
        {"shapes": [], "widths": {}, "plain": 1},
        ("plain",),
        1,
        "true or false",
    ),
    "another choice": ({"shapes": [], "widths": {}, "layers": 3}, ("layers",), 3, "1 or 2"),
    "a truth as a choice": (
        {"shapes": [], "widths": {}, "layers": True},
        ("layers",),
        True,
        "1 or 2",
    ),
    "a text in a list": ({"shapes": [], "widths": {"a": ["1"]}}, ("widths", "a", 0), "1", "number"),
    "no float": ({"shapes": [], "widths": {"a": [10**400]}}, ("widths", "a", 0), 10**400, "number"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_of_another_type_is_refused_at_its_place(kind: str) -> None:
    value, place, found, rule = WRONG[kind]
    with pytest.raises(TypedError) as caught:
        TYPED.read(Picture, value)
    assert (caught.value.place, caught.value.found) == (place, found)
    assert rule in caught.value.rule


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["shapes", "widths", "kind", "size", "circle", "box"]), inner
        )
    ),
)


@given(JSON)
def test_any_value_is_read_or_refused(value: Any) -> None:
    try:
        TYPED.read(Picture, value)
    except TypedError as error:
        assert str(error).endswith(error.rule) and error.rule
