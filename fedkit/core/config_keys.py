"""Keys of a configuration: each has a type, a default, a meaning and bounds.

Values come from JSON and TOML, where they have a type, and from a command line, where all are
text. A library for this takes more of a small device's memory than the rest of fedkit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fedkit.core.typed import one_of


def key(default: Any, description: str, **bounds: float) -> Any:
    """Return a field of a dataclass of keys; a type checker takes it for the default.

    Args:
        default: Its value where none is given.
        description: What it means.
        **bounds: `ge`, `gt`, `le` or `lt`, as the operators are called; `min_length` 1 of a text.
    """
    return field(default=default, metadata={"description": description, "bounds": bounds})


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        kind: str, int, float or a Literal of texts.
        default: Its value where none is given.
        description: What it means.
        bounds: See `key`.
    """

    kind: Any
    default: Any
    description: str
    bounds: Mapping[str, float]

    def checked(self, value: object) -> Any:
        """Return a value as its type has it.

        Raises:
            ValueError: It is of another type, or out of bounds; says the rule.
        """
        if isinstance(value, bool):
            raise ValueError("no key takes true or false")
        if get_origin(self.kind) is Literal:
            return _choice(value, get_args(self.kind))
        found = {str: _text, int: _whole, float: _real}[self.kind](value)
        for name, bound in self.bounds.items():
            holds, rule = _BOUNDS[name]
            if not holds(found, bound):
                raise ValueError(rule.format(int(bound) if bound == int(bound) else bound))
        return found


def keys_of(kind: type) -> dict[str, Key]:
    """Return the keys of a dataclass, by name."""
    hints = get_type_hints(kind)
    return {
        each.name: Key(hints[each.name], each.default, **each.metadata) for each in fields(kind)
    }


_BOUNDS: Mapping[str, tuple[Any, str]] = {
    "ge": (lambda value, bound: value >= bound, "input should be greater than or equal to {}"),
    "gt": (lambda value, bound: value > bound, "input should be greater than {}"),
    "le": (lambda value, bound: value <= bound, "input should be less than or equal to {}"),
    "lt": (lambda value, bound: value < bound, "input should be less than {}"),
    "min_length": (lambda text, least: len(text) >= least, "text should not be empty"),
}


def _choice(value: object, choices: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in choices:
        return value
    raise ValueError(f"input should be {one_of(choices)}")


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("input should be a valid string")


def _whole(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    raise ValueError("input should be a valid integer")


def _real(value: object) -> float:
    if not isinstance(value, int | float | str):
        raise ValueError("input should be a valid number")
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise ValueError("input should be a valid number") from None
    if not math.isfinite(found):
        raise ValueError("input should be a finite number")
    return found
