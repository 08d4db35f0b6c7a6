"""What a page shows of runs that go on: made anew when their files change, and never too often."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedkit.core.errors import FedkitError
from fedkit.report.markup import safe
from fedkit.report.page import Content, content, page, to_json
from fedkit.report.reading import Look, look_at_none, read_run
from fedkit.server.checkpoint import RunFolder

_SHARE = 5
"""Between two readings is so many times what one takes: a run has the processor to itself."""

_NOT_SHOWN = (".", "flower.log", "metrics.prom", "report.html")
"""What names of files begin with that a page has nothing of."""


_Files = list[tuple[str, int, int]]


@dataclass(frozen=True)
class State:
    """What there is to see.

    Attributes:
        tag: Another one for every other content.
        shown: The content.
    """

    tag: str
    shown: Content

    @property
    def page(self) -> str:
        """The whole page."""
        return page(self.shown, live=True)

    @property
    def data(self) -> str:
        """What a page that is open shows anew, as JSON."""
        return to_json(vars(self.shown))


class Live:
    """Runs that are looked at while they go on; any thread may ask.

    Args:
        find: Returns the folders to look at now; they need not be there yet.
        look: Tells the layers of an artifact.
    """

    def __init__(self, find: Callable[[], Sequence[Path]], look: Look = look_at_none) -> None:
        self._find, self._look_at = find, look
        self._lock = threading.Lock()
        self._state = State("", Content("", "", {}))
        self._seen: dict[Path, tuple[_Files, bool]] | None = None
        self._next = 0.0

    def state(self) -> State:
        """Return what there is to see: as it was read last, while nothing is new."""
        with self._lock:
            if time.monotonic() >= self._next:
                began = time.monotonic()
                self._read()
                self._next = time.monotonic() + _SHARE * (time.monotonic() - began)
            return self._state

    def _read(self) -> None:
        paths = [path for path in self._find() if (path / "config.toml").is_file()]
        seen = {path: self._look(path) for path in paths}
        if seen == self._seen:
            return
        shown = _content(paths, self._look_at)
        about = json.dumps([shown.title, shown.body, shown.figures]).encode()
        self._state = State(f'"{hashlib.sha256(about).hexdigest()[:32]}"', shown)
        self._seen = seen

    def _look(self, path: Path) -> tuple[_Files, bool]:
        """Return what changes when there is something new: files, and whether the run goes on.

        While nothing is new, that is asked only of a run that went on: a question takes its lock
        for a moment, and could stop one that begins.
        """
        files, (before, went_on) = _files(path), (self._seen or {}).get(path, ([], True))
        return files, (went_on or files != before) and RunFolder(path).is_held


def _content(paths: Sequence[Path], look: Look) -> Content:
    try:
        if paths:
            return content([read_run(path, look) for path in paths])
        return _words("No run yet", "There is no run yet. It appears here when it begins.")
    except (FedkitError, OSError) as error:  # A folder that somebody removes in this moment.
        return _words("No run", str(error))


def _words(title: str, text: str) -> Content:
    return Content(title, f"<p>{safe(text, 400)}</p>\n", {})


def _files(path: Path) -> _Files:
    """Return name, time and length of the files in a run folder that a page shows something of."""
    found = []
    for folder in (path, path / "checkpoint"):
        try:
            entries = [each for each in os.scandir(folder) if not each.name.startswith(_NOT_SHOWN)]
            stats = [(each.name, each.stat()) for each in entries]
        except OSError:
            continue
        found += [(name, about.st_mtime_ns, about.st_size) for name, about in stats]
    return sorted(found)
