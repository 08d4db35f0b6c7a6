"""Tables that fit a terminal: no word is cut in two where a form of the table has room for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

_WIDE = 10**12
"""Characters of a terminal on which everything has room."""


def fit(shown: Any, console: Console) -> Any:
    """Return tables in the first form that fits; what is no table, or group of some, stays.

    Columns shrink to their longest words. A table that is too wide even so loses the lines between
    its columns, or is turned, a column for each of its rows. Else its rows stand below each other,
    a line for each value. What is longer than a line there breaks behind slashes and commas, as
    paths and lists do.
    """
    if isinstance(shown, Group):
        return Group(*(fit(each, console) for each in shown.renderables))
    if not isinstance(shown, Table):
        return shown
    forms = [_same] if len(shown.columns) <= 2 else [_same, _airless, _turned, _stacked]
    for form in forms:
        table = form(shown)
        if _shrinks(table, console):
            return _below_title(table, console)
    return _below_title(_break_words(table, console), console)


def broken(text: str, width: int) -> str:
    """Break words that are longer than `width` behind slashes and commas, where they have any."""
    return "\n".join(
        " ".join(_broken_word(word, width) for word in line.split(" ")) for line in text.split("\n")
    )


def _broken_word(word: str, width: int) -> str:
    if len(word) <= width:
        return word
    lines = [""]
    for part in re.split("(?<=[/,])", word):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


# Forms


def _rows(table: Table) -> Iterator[tuple[RenderableType, ...]]:
    yield from zip(*(column.cells for column in table.columns), strict=True)
    if table.show_footer:
        yield tuple(column.footer for column in table.columns)


def _plain(table: Table, columns: int) -> Table:
    """Return an empty table without heads, with what stands above and below another one."""
    made = Table(*(Column() for _ in range(columns)), title=table.title, caption=table.caption)
    made.show_header, made.title_justify = False, "left"
    return made


def _heads(table: Table) -> list[str]:
    return [str(column.header).replace("\n", " ").replace("_", " ") for column in table.columns]


def _same(table: Table) -> Table:
    return table


def _airless(table: Table) -> Table:
    table.box, table.show_edge, table.pad_edge, table.padding = box.SIMPLE, False, False, (0, 0)
    return table


def _turned(table: Table) -> Table:
    rows = list(_rows(table))
    turned = _plain(table, 1 + len(rows))
    for cells in zip(_heads(table), *rows, strict=True):
        turned.add_row(*cells)
    return turned


def _stacked(table: Table) -> Table:
    stacked, heads = _plain(table, 2), _heads(table)
    for row in _rows(table):
        for head, cell in zip(heads, row, strict=True):
            if cell != "":
                stacked.add_row(head, cell)
        stacked.add_section()
    return stacked


# Widths


def _measured(shown: RenderableType, console: Console) -> Measurement:
    """Return the characters of the longest word and of the longest line."""
    return Measurement.get(console, console.options.update_width(_WIDE), shown)


def _limits(table: Table, column: Column, console: Console) -> tuple[int, int]:
    """Return the least width at which no word of a column is cut, and the largest it can use."""
    ends = [column.header] * table.show_header + [column.footer] * table.show_footer
    found = [_measured(cell, console) for cell in (*ends, *column.cells)]
    most = max((each.maximum for each in found), default=0)
    return most if column.no_wrap else max((each.minimum for each in found), default=0), most


def _shrinks(table: Table, console: Console) -> bool:
    """Give columns their widths; return whether all words have room."""
    limits = [_limits(table, column, console) for column in table.columns]
    widths = [most for _, most in limits]
    room = console.width - (_measured(table, console).maximum - sum(widths))
    if sum(widths) <= room:
        return True
    if sum(least for least, _ in limits) > room:
        return False
    widths = [min(width, room) for width in widths]
    while sum(widths) > room:
        free = [number for number, (least, _) in enumerate(limits) if widths[number] > least]
        widths[max(free, key=widths.__getitem__)] -= 1
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
    return True


def _break_words(table: Table, console: Console) -> Table:
    """Give the last column what the others leave, and break what is longer there."""
    limits = [_limits(table, column, console) for column in table.columns]
    room = console.width - (_measured(table, console).maximum - sum(most for _, most in limits))
    width = max(room - sum(most for _, most in limits[:-1]), room // 3)
    for column in table.columns:
        column.overflow, column.no_wrap = "fold", False
    if len(limits) == 2:
        table.columns[0].width = min(limits[0][1], room - width)
    last = table.columns[-1]
    last.width = width
    last._cells[:] = [broken(each, width) if isinstance(each, str) else each for each in last.cells]
    return table


def _below_title(table: Table, console: Console) -> RenderableType:
    """Put a title that has a word longer than the table's lines above it."""
    title = table.title
    if not isinstance(title, str) or not title:
        return table
    if _measured(title, console).minimum <= _measured(table, console).maximum:
        return table
    table.title = None
    return Group(Text(console.render_str(broken(title, console.width)).plain), table)
