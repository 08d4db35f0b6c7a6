"""Text of others, made harmless before it is written anywhere.

Names of layers, files, runs and devices come from models and machines that are not ours. Inside a
program they could end a comment or a string, in a terminal move the cursor or write a line of
their own. Code that writes such a text uses one of the two functions here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_. :,()\[\]-]")
_LONGEST = 200


def source_text(text: str) -> str:
    r"""Return `text` as it may stand in a comment of any program, script or unit file.

    ASCII letters and digits, spaces, and `_ . : , ( ) [ ] -` stay; everything else becomes `_`, so
    neither a quote, a slash, a star, a backslash, a question mark (trigraphs), `@` (addresses of
    `$readmemh`), `%` nor a line end is left. At most 200 characters are.

    >>> source_text("block/1*/ system(x) \\")
    'block_1__ system(x) _'
    """
    return _NOT_PLAIN.sub("_", text)[:_LONGEST]


def terminal_text(text: str) -> str:
    r"""Return `text` for a terminal: control and other unprintable characters spelled out.

    Line ends too: one text of others stays on one line. What is printable stays, in any script.

    >>> terminal_text("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def terminal_lines(text: str) -> str:
    r"""Return `text` of several lines for a terminal: each line as `terminal_text` gives it.

    >>> terminal_lines("a\nb\rc")
    'a\nb\\rc'
    """
    return "\n".join(map(terminal_text, text.split("\n")))


def cut(text: str, most: int) -> str:
    """Return one line of printable characters, at most `most` of them: others chose the text."""
    told = terminal_text(text[: most + 1])
    return told if len(told) <= most else f"{told[: most - 1]}…"


def short(value: object, most: int = 80) -> str:
    """Return a value's repr for a message, cut to `most` characters: others choose what it is."""
    told = repr(value)
    return told if len(told) <= most else f"{told[: most - 3]}..."


def listed(noun: str, numbers: Sequence[object], most: int = 10) -> str:
    """Return "device 3" or "devices 3, 5, 8", and no more than `most` numbers."""
    plural = "es" if noun.endswith("s") else "s"
    text = ", ".join(map(str, numbers[:most]))
    rest = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"{noun}{plural if len(numbers) > 1 else ''} {text}{rest}"
