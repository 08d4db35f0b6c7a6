"""`fedkit report`: a page about runs, written to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from fedkit.cli.tables import size
from fedkit.core.errors import ConfigError
from fedkit.core.files import write_atomic
from fedkit.core.text import terminal_text
from fedkit.report import page

REPORT = "report.html"
"""What a report is called in a run folder."""


def report(runs: Sequence[Path], out: Path | None) -> dict[str, Any]:
    """Write a report about some runs; return its `path` and `bytes`.

    Raises:
        CheckpointError: A folder is no run folder.
        ConfigError: plotly is missing, or `out` is no place for a report.
    """
    path = runs[0] / REPORT if out is None else out
    _check_place(path)
    content = page.report(runs).encode()
    write_atomic(path, content)
    return {"path": str(path), "bytes": len(content)}


def _check_place(path: Path) -> None:
    """Refuse to write over what is no report, and where no folder is."""
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder; give the file to write in it")
    if path.exists() and not _is_report(path):
        raise ConfigError(f"{path} is there and is no report; give another --out")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder; make it first, or give another --out")


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return page.MARK.encode() in file.read(1000)


def report_line(written: Mapping[str, Any]) -> Text:
    """Return the line that tells where a report is."""
    told = f"{written['path']} ({size(written['bytes'])})"
    return Text(terminal_text(told), no_wrap=True, overflow="ignore")
