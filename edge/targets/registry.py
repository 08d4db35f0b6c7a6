"""All export targets: the one list that a new one is added to.

Each name is a package of `edge.targets` whose module `row` has `TARGET`, an
`edge.targets.export_target.ExportTarget`. A row is imported when it is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from edge.targets.export_target import ExportTarget

NAMES = ("tflite", "onnx", "c99", "fpga")
"""In the order of tables."""


@functools.cache
def find_row(name: str) -> ExportTarget:
    """Return the row of a target, which must be one of `NAMES`."""
    return cast("ExportTarget", import_module(f"edge.targets.{name}.row").TARGET)


@functools.cache
def runtimes() -> Mapping[str, Mapping[str, str]]:
    """Return kind of artifact -> what can run it, the usual one first -> its rounding policy."""
    rows = map(find_row, NAMES)
    return {kind: policies for row in rows for kind, policies in row.runtimes.items()}


def row_of(kind: str) -> ExportTarget | None:
    """Return the target that makes a kind of artifact, or None."""
    return next((row for row in map(find_row, NAMES) if kind in row.runtimes), None)


def __getattr__(name: str) -> Mapping[str, Mapping[str, str]]:
    """Offer `runtimes()` as the constant `RUNTIMES`, as it was called until 0.1."""
    if name == "RUNTIMES":
        return runtimes()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
