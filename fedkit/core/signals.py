"""Signals that ask a process to end become an exception, so that every `finally` runs.

The command line imports this before all else that takes time, so it imports next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WORDS = {
    signal.SIGINT: "stopped by Ctrl-C",
    signal.SIGTERM: "stopped by SIGTERM",
    signal.SIGHUP: "stopped, as the terminal was closed",
}
_SOON = 1.0


class Ended(BaseException):
    """A signal asks this process to end. No `except Exception` on the way out stops it.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


STOPS = (Ended, KeyboardInterrupt)
"""What a person's or the system's wish to end looks like, with and without `ended_by_signals`."""


def stop_words(stop: BaseException) -> str:
    """Say in words which of `STOPS` it was."""
    return _WORDS[signal.Signals(stop_number(stop))]


def stop_number(stop: BaseException) -> int:
    """Return the number of the signal behind one of `STOPS`."""
    return stop.number if isinstance(stop, Ended) else signal.SIGINT


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP raise `Ended` in this block.

    Where that cannot be, they end the process at once, with one line and the exit code of the
    signal: while a module is imported, since compiled code that calls Python aborts when an
    exception comes out of it; where Python would swallow the exception; and when a second signal
    comes while this one's `finally` blocks run. What was started is ended by the watcher then.

    Signals that were ignored stay so: `nohup` is heeded. Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Handler()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    swallowed = sys.unraisablehook
    sys.unraisablehook = lambda about: handler.swallowed(about, swallowed)
    for number, old in before.items():
        if old is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        sys.unraisablehook = swallowed


class _Handler:
    def __init__(self) -> None:
        self._since: float | None = None
        self._terminals = [file for file in (1, 2) if os.isatty(file)]

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._leave_terminal()
        if self._since is None and not _importing(frame):
            self._since = time.monotonic()
            raise Ended(number)
        # A closing terminal sends several at once; a second request later means at once.
        if self._since is None or time.monotonic() - self._since > _SOON:
            _end_at_once(number)

    def _leave_terminal(self) -> None:
        """Write nowhere from now on: a terminal that is gone answers each word with an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for file in self._terminals:
            os.dup2(nowhere, file)
        os.close(nowhere)

    def swallowed(self, about: Any, hook: Any) -> None:
        if isinstance(about.exc_value, Ended):
            _end_at_once(about.exc_value.number)
        hook(about)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end_at_once(number: int) -> None:
    shown = "\x1b[?25h" if os.isatty(2) else ""  # A progress bar hides the cursor.
    with contextlib.suppress(OSError):
        os.write(2, f"{shown}{_WORDS[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)
