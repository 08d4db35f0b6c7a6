"""HTML of texts and numbers that others chose: escaped, cut, and nothing more than text."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from fedkit.core.text import cut

LONGEST = 200
"""Characters of a text of others that are shown."""


def plain(value: object, most: int = LONGEST) -> str:
    """Return one line of printable characters, at most `most` of them."""
    return cut(value if isinstance(value, str) else str(value), most)


def safe(value: object, most: int = LONGEST) -> str:
    """Return a text as it may stand between tags and in a quoted attribute."""
    return html.escape(plain(value, most))


def label(value: object, most: int = 60) -> str:
    """Return a text for a chart, whose library reads tags and entities of HTML, and TeX in `$`."""
    return html.escape(plain(value, most), quote=False).replace("$", "&#36;")


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table: the first cell of a row names it, numbers are set to the right."""
    heads = "".join(f'<th scope="col">{safe(each)}</th>' for each in head)
    lines = "".join(f"<tr>{_first(row[0])}{''.join(map(_cell, row[1:]))}</tr>\n" for row in rows)
    return (
        '<div class="wide" tabindex="0" role="region" '
        f'aria-label="{safe(caption)}"><table><caption>{safe(caption)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{lines}</tbody></table></div>\n"
    )


def _first(value: object) -> str:
    return f'<th scope="row">{safe(value)}</th>'


def _cell(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        told = f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
        return f'<td class="number">{safe(told)}</td>'
    return f"<td>{'' if value is None else safe(value)}</td>"


def folded(title: str, content: str) -> str:
    """Return content that opens when its title is asked for."""
    return f"<details><summary>{safe(title)}</summary>\n{content}</details>\n"
