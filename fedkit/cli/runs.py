"""`fedkit runs`, as a table of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from fedkit.cli.tables import size
from fedkit.report.listing import list_runs


def runs(folder: Path) -> dict[str, Any]:
    """Return how far each run in a folder came."""
    return {"folder": str(folder), "runs": list_runs(folder)}


def runs_table(found: Mapping[str, Any]) -> Table:
    """Return a line per run."""
    rows = found["runs"]
    title = f"{len(rows)} run{'s' * (len(rows) != 1)} in {found['folder']}"
    right = {"justify": "right", "no_wrap": True}
    table = Table(
        Column("run", overflow="fold"),  # A name must stay whole, to be copied.
        Column("state", no_wrap=True),
        Column("round", **right),  # type: ignore[arg-type]
        Column("metric", overflow="fold"),
        Column("density", **right),  # type: ignore[arg-type]
        Column("bytes", **right),  # type: ignore[arg-type]
        title=title,
        title_justify="left",
        padding=(0, 0),
    )
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    planned = "?" if row["rounds"] is None else row["rounds"]
    return [
        Path(row["run"]).name,
        row["state"],
        f"{row['round']}/{planned}",
        f"{row['metric']} {row['text']}" if row["text"] else "",
        "" if row["density"] is None else f"{row['density']:.2%}",
        size(row["bytes_down"] + row["bytes_up"]),
    ]
