"""What is there of a comparison: its result, or the cells of a grid that has not ended.

While a grid runs its folder holds `grid.json`, which names the file of every cell, and the files of
those that are done. Files may be damaged or somebody else's: none ends the reading but the one that
was asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkit.core.errors import CheckpointError
from fedkit.core.files import read_whole
from fedkit.core.text import short
from fedkit.report.comparison import Result
from fedkit.report.run_steps import is_count, is_number, metric_of

PLAN = "grid.json"
"""File of a grid's folder that says what the grid is."""

_MOST_BYTES = 1 << 28
_MOST_TOLD = 10
"""Cells that are missing and named one by one."""


@dataclass(frozen=True)
class Comparison:
    """What is known of a comparison.

    Attributes:
        path: Of the result, or the folder of the grid.
        result: As `fedkit compare` writes it, with the cells that are there; at least one.
        planned: How many cells there are to be.
        missing: What is not there or cannot be shown, a sentence each.
    """

    path: Path
    result: Result
    planned: int
    missing: tuple[str, ...] = ()


def is_comparison(path: Path) -> bool:
    """Whether a path is meant as a comparison: a .json file, or the folder of a grid."""
    if path.is_dir():
        return (path / PLAN).is_file() and not (path / "config.toml").is_file()
    return path.suffix == ".json"


def read_comparison(path: Path) -> Comparison:
    """Read a result of `fedkit compare`, or the folder of a grid that has not ended.

    Raises:
        CheckpointError: It is neither, or no cell of it is there.
    """
    return _read_folder(path) if path.is_dir() else _read_result(path)


def _read_result(path: Path) -> Comparison:
    result = _json(path)
    _check_head(path, result)
    rows = result.get("rows")
    if result.get("benchmark") != "compare" or not isinstance(rows, list):
        raise _not_one(path, "it has no rows of cells")
    return _comparison(path, result, dict(enumerate(rows, 1)), len(rows), [])


def _read_folder(folder: Path) -> Comparison:
    plan = _json(folder / PLAN)
    _check_head(folder / PLAN, plan)
    cells = plan.get("cells")
    if not isinstance(cells, dict) or not all(isinstance(each, dict) for each in cells.values()):
        raise _not_one(folder / PLAN, "it names no cells")
    rows, missing = {}, []
    for name, place in cells.items():
        try:
            rows[name] = place | read_cell(folder / Path(name).name)
        except FileNotFoundError:
            missing.append(f"cell {_words(place)}: it has not run")
        except (OSError, ValueError) as error:
            missing.append(f"cell {_words(place)}: {error}")
    told = missing[:_MOST_TOLD]
    if len(missing) > len(told):
        told.append(f"{len(missing) - len(told):,} more cells")
    return _comparison(folder, plan, rows, len(cells), told)


def _words(place: Mapping[str, Any]) -> str:
    return " ".join(f"{axis}={value}" for axis, value in place.items())


def _comparison(
    path: Path, result: Mapping[str, Any], rows: Mapping[Any, Any], planned: int, missing: list[str]
) -> Comparison:
    """Keep the rows that can be shown, and say which cannot."""
    axes = list(result["grid"]["axes"])
    shown = []
    for name, row in rows.items():
        if (fault := _fault(row, axes)) is not None:
            missing.append(f"cell {name}: {fault}")
        else:
            shown.append(_harmless(row))
    if not shown:
        raise CheckpointError(
            f"no cell of {path} can be shown yet ({missing[0] if missing else 'there is none'}); "
            "give the command of the comparison again, it goes on"
        )
    seeds = sorted({row["seed"] for row in shown})
    return Comparison(path, {**result, "seeds": seeds, "rows": shown}, planned, tuple(missing))


# A cell's file ---------------------------------------------------------------------------------


def digest(value: Mapping[str, Any]) -> str:
    """Return the sha256 of what a JSON object holds, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_cell(path: Path, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the row of a finished cell.

    Args:
        path: Its file.
        config: What the cell was run with; by default that is not looked at.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or of another config.
    """
    try:
        cell = json.loads(read_whole(path, _MOST_BYTES))
        row: dict[str, Any] = cell["row"]
        if cell["digest"] != digest(row) or config not in (None, cell["config"]):
            raise ValueError("its digest is another")
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return row


# What is taken from others ---------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_whole(path, _MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise _not_one(path, str(error)) from error
    if not isinstance(found, dict):
        raise _not_one(path, "it is not a JSON object")
    return found


def _check_head(path: Path, result: Mapping[str, Any]) -> None:
    grid = result.get("grid")
    named = isinstance(result.get("name"), str)
    if not named or not isinstance(grid, dict) or not isinstance(grid.get("axes"), dict):
        raise _not_one(path, "it has no name and grid")


def _not_one(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a result of a comparison ({why}); give a file that `fedkit compare` wrote, "
        "like results/compare-NAME.json, or the folder of a grid, like runs/compare/NAME"
    )


def _is_positive(value: object) -> bool:
    return is_count(value) and value != 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_FIELDS: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("task", "model", "method"), _is_text),
    **dict.fromkeys(("density", "alpha", "seconds"), is_number),
    **dict.fromkeys(("rounds", "devices"), _is_positive),
    **dict.fromkeys(("seed", "bytes_up", "bytes_down"), is_count),
}
"""What a row must hold to be shown, beside a number of its metric."""


def _fault(row: object, axes: list[str]) -> str | None:
    """Return why a row cannot be shown, or None."""
    if not isinstance(row, dict):
        return "it is not a JSON object"
    if wrong := [key for key, good in _FIELDS.items() if not good(row.get(key))]:
        return f"its {wrong[0]} is {short(row.get(wrong[0]), 40)}"
    plain = (str, int, float, type(None))
    if odd := [axis for axis in axes if not isinstance(row.get(axis), plain)]:
        return f"its {odd[0]} is {short(row.get(odd[0]), 40)}"
    value = row.get("accuracy")
    return None if is_number(value) else f"it ended with {short(value, 40)}, which is not a number"


def _harmless(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose metric can be asked for texts."""
    metric = {"metric": metric_of([row]).about} if row.get("metric") is not None else {}
    return {**{key: value for key, value in row.items() if key != "metric"}, **metric}
