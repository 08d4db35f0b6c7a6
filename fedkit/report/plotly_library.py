"""Plotly, which draws the charts of a report in the reader's browser; of the extra `report`."""

from __future__ import annotations

import base64
import functools
import gzip
import importlib.util

from fedkit.core.errors import ConfigError


def is_there() -> bool:
    """Whether plotly is installed."""
    return importlib.util.find_spec("plotly") is not None


def require() -> None:
    """Raise a `ConfigError` where plotly is not installed."""
    if not is_there():
        raise ConfigError(
            "a report needs plotly, which is not installed: pip install 'fedkit[report]'"
        )


@functools.cache
def packed() -> str:
    """Return Plotly's JavaScript by gzip and base64: 2.0 MB of 4.8; it ships no smaller part."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
