"""`fedkit run --live` and `fedkit fleet watch`: the report of what goes on, in a browser."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedkit.core.errors import CheckpointError
from fedkit.core.names import check_name, find_run
from fedkit.core.signals import STOPS
from fedkit.fleet.folder import Fleet

Say = Callable[[str], None]


@contextmanager
def runs(paths: Sequence[Path], wanted: bool, address: str, say: Say) -> Iterator[None]:
    """Serve a page about runs during the block, if that is wanted.

    Args:
        paths: Their folders, which the block may make.
        wanted: On a free port of 127.0.0.1.
        address: host:port instead, which means wanted too; "" for none.
        say: Where the page's address goes.

    Raises:
        ConfigError: plotly is missing, or this machine cannot listen there.
    """
    if not (wanted or address):
        yield
        return
    from fedkit.cli.artifact_layers import layers
    from fedkit.report.live import Live
    from fedkit.report.serving import served

    with served(Live(lambda: paths, layers), address) as url:
        say(f"live: {url} (until this command ends)")
        yield


def fleet(watched: Fleet, name: str, address: str, say: Say) -> None:
    """Serve a page about a run of a fleet until this command is stopped.

    Args:
        watched: The fleet.
        name: Of the run; "" for the newest, whenever another one begins.
        address: host:port to listen on; "" for a free port of 127.0.0.1.
        say: Where the page's address goes.

    Raises:
        ConfigError: The name is not valid, plotly is missing, or this machine cannot listen there.
    """
    from fedkit.cli.artifact_layers import layers
    from fedkit.report.live import Live
    from fedkit.report.serving import served

    named = [watched.runs / check_name(name)] if name else []
    with served(Live(lambda: named or newest(watched.runs), layers), address) as url:
        say(f"live: {url} (Ctrl-C ends it)")
        try:
            threading.Event().wait()
        except STOPS:  # the way to end it
            return


def newest(folder: Path) -> list[Path]:
    """Return the run of a folder that was written to last, or none."""
    try:
        return [find_run(folder, "last")]
    except CheckpointError:
        return []
