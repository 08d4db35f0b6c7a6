"""What constants look like in C."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_WIDTH = 100


def wrapped(items: Iterable[str]) -> Iterator[str]:
    """Yield the lines of an initialiser, of its elements as C has them."""
    line = "   "
    for item in items:
        if len(line) + len(item) + 2 > _WIDTH:
            yield line
            line = "   "
        line += f" {item},"
    yield line


def literal(text: str) -> str:
    """Return a string of C; what is not plain, and `?`, which trigraphs begin with, as numbers."""
    plain = set(range(32, 127)) - set(b'"\\?')
    return '"' + "".join(chr(c) if c in plain else f"\\{c:03o}" for c in text.encode()) + '"'
