"""Tables in Markdown, and how figures are written in them."""

from __future__ import annotations

from collections.abc import Iterable


def table(head: str, rows: Iterable[str]) -> list[str]:
    """Return the lines of a table, of its first line and the others."""
    return [head, "|" + "---|" * (head.count("|") - 1), *rows]


def mb(count: float) -> str:
    """Write bytes as megabytes."""
    return f"{count / 1e6:.1f} MB"


def kb(count: float) -> str:
    """Write bytes as kilobytes."""
    return f"{count / 1e3:,.0f} kB"


def times(ratio: float | None) -> str:
    """Write a ratio; nothing where there is none."""
    return "" if ratio is None else f"{ratio:.2f}x"
