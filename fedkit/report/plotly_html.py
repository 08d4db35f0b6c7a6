"""Plotly, which draws the charts of a report in the reader's browser; of the extra `report`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from fedkit.core.errors import ConfigError

_SHOWN = {"responsive": True, "displaylogo": False, "plotlyServerURL": ""}
"""Charts are as wide as the page, and nothing in them leads to a server."""


def require() -> None:
    """Raise a `ConfigError` where plotly is not installed."""
    if importlib.util.find_spec("plotly") is None:
        raise ConfigError(
            "a report needs plotly, which is not installed: pip install 'fedkit[report]'"
        )


def library() -> str:
    """Return Plotly's JavaScript, 4.8 MB: it ships no smaller part of itself."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def embed(figure: Mapping[str, Any], name: str) -> str:
    """Return a chart as HTML, for a page that has `library` before it.

    Args:
        figure: Traces and layout.
        name: Identifier of its element, of letters, digits and `-`.
    """
    from plotly.io import to_html

    return str(
        to_html(
            dict(figure),
            config=_SHOWN,
            include_plotlyjs=False,
            full_html=False,
            validate=False,
            default_height=figure["layout"]["height"],
            div_id=name,
        )
    )
