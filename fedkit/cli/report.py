"""`fedkit report`: a page about runs or about a comparison, written to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from fedkit.cli.artifact_layers import layers
from fedkit.cli.tables import size
from fedkit.core.errors import ConfigError
from fedkit.core.files import write_atomic
from fedkit.core.text import terminal_text
from fedkit.report import page
from fedkit.report.comparison_page import comparison_report
from fedkit.report.comparison_reading import is_comparison

REPORT = "report.html"
"""What a report is called in a run folder."""


def report(paths: Sequence[Path], out: Path | None) -> dict[str, Any]:
    """Write a report about some runs, or about one comparison; return its `path` and `bytes`.

    Args:
        paths: Run folders; or one result of `fedkit compare`, or the folder of one grid.
        out: The file; by default report.html in the first folder, of a result NAME.html beside it.

    Raises:
        CheckpointError: A path is none of those.
        ConfigError: plotly is missing, `out` is not a place for a report, or there is more than
            a comparison.
    """
    compared = [path for path in paths if is_comparison(path)]
    if compared and len(paths) > 1:
        raise ConfigError(
            f"{compared[0]} is a comparison, and a page shows one of them alone; give only that, "
            "or only run folders"
        )
    path = out or _usual_place(paths[0])
    _check_place(path)
    content = (comparison_report(compared[0]) if compared else page.report(paths, layers)).encode()
    write_atomic(path, content)
    return {"path": str(path), "bytes": len(content)}


def _usual_place(path: Path) -> Path:
    return path / REPORT if path.is_dir() else path.with_suffix(".html")


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
