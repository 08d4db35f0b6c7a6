"""Files of numbers that lie in a report itself: CSV, compressed where it is long."""

from __future__ import annotations

import base64
import csv
import gzip
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fedkit.report.markup import plain, safe
from fedkit.report.thin import spread

_LEAST_ROW = 4
"""Bytes that a row takes at least, compressed; more rows than could fit are not tried."""

_LEAST_ROOM = 100_000
_PLAIN_BYTES = 100_000
"""Of a file that is not compressed, so that a spreadsheet opens it."""


@dataclass(frozen=True)
class File:
    """A file of rows, each made when it is asked for.

    Attributes:
        name: Without its ending.
        what: Its rows are, in the plural.
        head: Names of the columns.
        count: Of the rows.
        row: Its cells, by its number.
    """

    name: str
    what: str
    head: Sequence[str]
    count: int
    row: Callable[[int], Sequence[object]]


def downloads(files: Sequence[File], room: int) -> str:
    """Return links that hold files as CSV, in less than `room` characters together if that can be.

    A file gets an equal part of the room that those before it left: give the longest last.
    """
    links = []
    for number, file in enumerate(files):
        share = max(_LEAST_ROOM, room // (len(files) - number))
        links.append(_link(file, 3 * share // 4))  # base64 takes a third more
        room -= len(links[-1])
    return f"<ul>\n{''.join(links)}</ul>\n"


def _link(file: File, most: int) -> str:
    kept, data, kind = _fitting(file, most)
    ending, mime = _KINDS[kind]
    packed = base64.b64encode(data).decode()
    part = "all" if len(kept) == file.count else f"{len(kept):,} of {file.count:,}"
    zipped = ", compressed by gzip" if kind == "gzip" else ""
    return (
        f'<li><a download="{safe(file.name + ending)}" href="data:{mime};base64,{packed}">'
        f"{safe(file.name)} as CSV</a>: {part} {safe(file.what)}{zipped}</li>\n"
    )


_KINDS = {"plain": (".csv", "text/csv;charset=utf-8"), "gzip": (".csv.gz", "application/gzip")}


def _fitting(file: File, most: int) -> tuple[list[int], bytes, str]:
    """Return which rows fit into so many bytes, the file of them, and its kind."""
    kept = spread(file.count, max(2, most // _LEAST_ROW))
    data, kind = _packed(file, kept)
    while len(data) > most and len(kept) > 2:
        kept = spread(file.count, max(2, int(0.95 * len(kept) * most / len(data))))
        data, kind = _packed(file, kept)
    return kept, data, kind


def _packed(file: File, kept: Sequence[int]) -> tuple[bytes, str]:
    data = to_csv(file.head, map(file.row, kept)).encode()
    if len(data) <= _PLAIN_BYTES:
        return data, "plain"
    return gzip.compress(data, mtime=0), "gzip"


def to_csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return CSV; a text that a spreadsheet would compute gets a quote in front."""
    file = io.StringIO()
    csv.writer(file).writerows([head, *(map(_harmless, row) for row in rows)])
    return file.getvalue()


def _harmless(value: object) -> object:
    if not isinstance(value, str):
        return "" if value is None else value
    told = plain(value)
    return f"'{told}" if told.startswith(("=", "+", "-", "@")) else told
