"""Frozen dataclasses from what a JSON file holds, strictly: no value is converted, no key unknown.

A device reads its plan by this. A library for it takes more of a small device's memory than the
rest of fedkit.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Place = tuple[str | int, ...]


class TypedError(ValueError):
    """A value is not of its type.

    Attributes:
        place: Names and numbers that lead to it.
        found: The value; `MISSING` where there is none.
        rule: What it must be.
    """

    def __init__(self, place: Place, found: Any, rule: str) -> None:
        super().__init__(f"{'.'.join(map(str, place))}: {rule}")
        self.place, self.found, self.rule = place, found, rule


class Typed:
    """Reads values of some types.

    Args:
        kinds: For each abstract dataclass, the classes it stands for by what their `kind` says.
    """

    def __init__(self, kinds: Mapping[type, Mapping[str, type]]) -> None:
        self._kinds = kinds

    def read(self, hint: Any, value: Any, place: Place = ()) -> Any:
        """Return a value as its type has it: objects as dataclasses, arrays as tuples.

        Args:
            hint: str, int, float, bool, None, a dataclass, or a Literal, union, tuple, Sequence or
                dict of such.
            value: What `json.loads` gave.
            place: Where it stands.

        Raises:
            TypedError: It is something else; a whole number is a float, too.
        """
        read = self._compound(hint)
        if read is not None:
            return read(hint, value, place)
        name = _NAMES[hint]
        if hint is float and type(value) is int and abs(value) < _LARGEST:
            return float(value)
        if type(value) is not hint:
            raise TypedError(place, value, f"input should be {name}")
        return value

    def _compound(self, hint: Any) -> Callable[[Any, Any, Place], Any] | None:
        if isinstance(hint, type) and hint in self._kinds:
            return self._one_kind
        if is_dataclass(hint):
            return self._object
        origin = get_origin(hint)
        return {
            Literal: _choice,
            Union: self._either,
            types.UnionType: self._either,
            tuple: self._tuple,
            Sequence: self._tuple,
            dict: self._dict,
        }.get(origin)

    def _one_kind(self, hint: Any, value: Any, place: Place) -> Any:
        kinds = self._kinds[hint]
        found = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(found, str) or found not in kinds:
            raise TypedError(place, value, f"its kind should be one of {', '.join(kinds)}")
        return self._object(kinds[found], value, (*place, found))

    def _object(self, hint: Any, value: Any, place: Place) -> Any:
        if not isinstance(value, dict):
            raise TypedError(place, value, "input should be an object")
        hints, found = _hints(hint), dict[str, Any]()
        for name in value:
            if name not in hints:
                raise TypedError((*place, name), value[name], "there is no such field")
        for name, (kind, required) in hints.items():
            if name in value:
                found[name] = self.read(kind, value[name], (*place, name))
            elif required:
                raise TypedError((*place, name), MISSING, "field required")
        return hint(**found)

    def _either(self, hint: Any, value: Any, place: Place) -> Any:
        errors = list[TypedError]()
        for kind in get_args(hint):
            try:
                return self.read(kind, value, place)
            except TypedError as error:
                errors.append(error)
        raise max(errors, key=lambda error: len(error.place))  # that of the most similar type

    def _tuple(self, hint: Any, value: Any, place: Place) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise TypedError(place, value, "input should be a list")
        kinds = get_args(hint)
        if len(kinds) == 1 or kinds[1:] == (...,):
            kinds = kinds[:1] * len(value)
        if len(value) < len(kinds):
            raise TypedError((*place, len(value)), MISSING, "field required")
        if len(value) > len(kinds):
            raise TypedError(place, value, f"input should have {len(kinds)} items")
        pairs = zip(kinds, value, strict=True)
        return tuple(self.read(k, v, (*place, index)) for index, (k, v) in enumerate(pairs))

    def _dict(self, hint: Any, value: Any, place: Place) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypedError(place, value, "input should be an object")
        _, kind = get_args(hint)
        return {name: self.read(kind, each, (*place, name)) for name, each in value.items()}


_LARGEST = 1 << 1023
"""Below this every whole number has a float."""

_NAMES: Mapping[Any, str] = {
    str: "a valid string",
    int: "a valid integer",
    float: "a valid number",
    bool: "true or false",
    types.NoneType: "null",
}


def _choice(hint: Any, value: Any, place: Place) -> Any:
    choices = get_args(hint)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise TypedError(place, value, f"input should be {one_of(choices)}")
    return value


def one_of(choices: Sequence[Any]) -> str:
    """Return choices as a text lists them: 1, 2 or 3."""
    *most, last = map(repr, choices)
    return f"{', '.join(most)} or {last}" if most else last


@functools.cache
def _hints(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Return the type of each field, and whether it must be given."""
    hints = get_type_hints(kind)
    none = MISSING
    return {
        field.name: (hints[field.name], field.default is none and field.default_factory is none)
        for field in fields(kind)
    }
