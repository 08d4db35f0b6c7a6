"""Things by number, of which memory holds the last that were used, and a folder the others."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from fedkit.core import supervise

Thing = TypeVar("Thing")

MOST = 256 << 20
"""Bytes of things in memory."""


@dataclass(frozen=True)
class Packing(Generic[Thing]):
    """How things become bytes and come back.

    Attributes:
        size: Returns the bytes of memory that a thing takes, about.
        pack: Returns its bytes.
        unpack: Inverts `pack`.
    """

    size: Callable[[Thing], int]
    pack: Callable[[Thing], bytes]
    unpack: Callable[[bytes], Thing]


class Spill(Generic[Thing]):
    """A table that may be larger than memory; several threads may use it.

    Files are in a temporary folder, made with the first of them, that is gone with this table or
    with the process.

    Args:
        packing: Of its things, which must not change while they are here.
        most: Bytes that are held in memory; the last thing always is.
    """

    def __init__(self, packing: Packing[Thing], most: int = MOST) -> None:
        self._packing, self._most, self._lock = packing, most, threading.Lock()
        self._held: OrderedDict[int, Thing] = OrderedDict()
        self._bytes = 0
        self._away: set[int] = set()
        self._folder: Path | None = None

    def get(self, number: int) -> Thing | None:
        """Return what was last put under a number, or None."""
        with self._lock:
            if number in self._held:
                self._held.move_to_end(number)
                return self._held[number]
            if number not in self._away:
                return None
            thing = self._packing.unpack(self._path(number).read_bytes())
            self._hold(number, thing)
            return thing

    def put(self, number: int, thing: Thing) -> None:
        """Keep a thing in place of what was there.

        Raises:
            OSError: A file cannot be written.
        """
        with self._lock:
            if (old := self._held.pop(number, None)) is not None:
                self._bytes -= self._packing.size(old)
            self._away.discard(number)
            self._hold(number, thing)

    def _hold(self, number: int, thing: Thing) -> None:
        self._held[number] = thing
        self._bytes += self._packing.size(thing)
        while self._bytes > self._most and len(self._held) > 1:
            self._send_away(*self._held.popitem(last=False))

    def _send_away(self, number: int, thing: Thing) -> None:
        self._bytes -= self._packing.size(thing)
        if number not in self._away:  # else its file is as it is
            self._path(number).write_bytes(self._packing.pack(thing))
            self._away.add(number)

    def _path(self, number: int) -> Path:
        if self._folder is None:
            self._folder = supervise.folder_of(self, "fedkit-")
        return self._folder / str(number)
