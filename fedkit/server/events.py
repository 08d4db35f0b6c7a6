"""What happens in a fleet, as one JSON object per line: the log that people and programs read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
"""Name of the log in a run folder."""


def _nobody(event: dict[str, Any]) -> None:
    del event


class EventLog:
    """Appends events to a file.

    Args:
        path: The file; events of an earlier part of a run are kept.
        told: Called with every event too.
    """

    def __init__(self, path: Path, told: Callable[[dict[str, Any]], None] = _nobody) -> None:
        self._path, self._told = path, told
        if path.is_file() and not path.read_bytes().endswith(b"\n"):
            with path.open("ab") as file:  # A line that was cut off ends here.
                file.write(b"\n")

    def __call__(self, event: str, **fields: Any) -> None:
        """Append an event with the time of now, in seconds since 1970."""
        line = {"time": round(time.time(), 3), "event": event, **fields}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._told(line)


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a log, but for lines that were cut off; none where there is no log."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if (event := _read_event(line)) is not None:
                yield event


def _read_event(line: bytes) -> dict[str, Any] | None:
    """Return what a line says, or None where it is half of one, or zeros after a power cut."""
    try:
        event: dict[str, Any] = json.loads(line)
        return event if isinstance(event["event"], str) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
