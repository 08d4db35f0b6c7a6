"""Rows that the modules of a package have in their `SPECS`: what is added there is found."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Protocol, TypeVar

from fedkit.core.errors import ExportError


class Row(Protocol):
    """What a registry holds."""

    @property
    def kind(self) -> str:
        """Its name."""


Some = TypeVar("Some", bound=Row)


def gather(package: ModuleType, row: type[Some], first: Sequence[str] = ()) -> dict[str, Some]:
    """Return kind -> row, of all modules of a package.

    Args:
        package: Its modules that have no `SPECS` are left out; its `registry` is not imported.
        row: What the rows must be.
        first: Modules that come first, in this order; the others follow by name.

    Raises:
        ExportError: Two rows have one kind, or a row is something else.
    """
    names = [each.name for each in pkgutil.iter_modules(package.__path__)]
    names = [*first, *sorted({*names} - {*first, "registry"})]
    table: dict[str, Some] = {}
    for name in names:
        for each in getattr(import_module(f"{package.__name__}.{name}"), "SPECS", ()):
            if not isinstance(each, row):
                raise ExportError(
                    f"{package.__name__}.{name} has a {type(each).__name__} in SPECS; make it a "
                    f"{row.__module__}.{row.__name__}"
                )
            if each.kind in table:
                raise ExportError(
                    f"{package.__name__} has two rows of kind {each.kind!r}, the later one in "
                    f"{name}; rename one"
                )
            table[each.kind] = each
    return table
