"""What pictures in SVG share: one document, light and dark, and text of others made harmless."""

from __future__ import annotations

import html
from collections.abc import Iterable

from fedkit.core.text import cut

_STYLE = """
:root { color-scheme: light dark; }
text { font: 12px system-ui, sans-serif; fill: #1b1b1b; }
.small { font-size: 11px; }
svg { background: #fff; }
@media (prefers-color-scheme: dark) { svg { background: #15181c; } text { fill: #e6e6e6; } }
"""


def document(width: int, height: int, label: str, style: str, parts: Iterable[str]) -> str:
    """Return an SVG document.

    Args:
        width: Pixels.
        height: Pixels.
        label: What a screen reader says of it; our own text.
        style: CSS of its own, behind that of all pictures.
        parts: Its elements.
    """
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{label}">'
        f"<style>{_STYLE}{style}</style>\n{''.join(parts)}</svg>\n"
    )


def text(text: str, most: int) -> str:
    """Return a text of others for an element, on one line of at most `most` characters."""
    return html.escape(cut(text, most))
