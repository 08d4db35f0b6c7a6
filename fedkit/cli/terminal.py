"""The terminal, to which much is written that comes from others: names of layers, runs, devices."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from fedkit.cli.fitting import fit
from fedkit.core.text import terminal_lines


class Terminal(Console):
    """A console that shows every text as it is, in tables and titles too.

    Nothing in it is markup or the name of an emoji, and what would move the cursor or set colours
    is spelled out. Styles are given beside the text. Tables are put so that they fit.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(markup=False, emoji=False, **given)

    def print(self, *objects: Any, **given: Any) -> None:
        """Print as rich does, tables in a form that fits."""
        super().print(*(fit(each, self) for each in objects), **given)

    def render_str(self, text: str, **given: Any) -> Text:
        """Make `text` harmless, then render it as rich does."""
        return super().render_str(
            terminal_lines(text), **{**given, "markup": False, "emoji": False}
        )
