"""Whatever ends a command ends all that it started, and a signal ends it in good order.

`guard` is for the end that nobody can catch: a process beside this one (`fedkit.watch`) outlives it
by a moment, and kills what it started. `ended_by_signals` is for the ends that can be caught: they
become an exception, so that every `finally` on the way out runs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from fedkit import watch

# What outlives a parent ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Watcher:
    parent: int
    pipe: int


_watcher: _Watcher | None = None


def guard() -> None:
    """See to it that all which this process starts from now on ends with it, however it ends.

    A second call does nothing. What is started must get this process's environment, or one made
    from it.
    """
    global _watcher
    if _watcher is None or _watcher.parent != os.getpid():
        _watcher = _start_watcher()


def _start_watcher() -> _Watcher | None:
    word = secrets.token_hex(16)
    # Not marked: it must outlive the others, and whoever started this process has one of its own.
    plain = {k: v for k, v in os.environ.items() if k not in (watch.MARK, "FLWR_HOME")}
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", watch.__file__, str(os.getpid()), word],
            env=plain,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:  # No process more may be started, so there will be none to watch.
        return None
    assert process.stdin is not None
    pipe = os.dup(process.stdin.fileno())
    process.stdin.close()
    process.returncode = 0  # Nobody waits for it: it ends after us.
    os.environ[watch.MARK] = ":".join(filter(None, (os.environ.get(watch.MARK), word)))
    return _Watcher(os.getpid(), pipe)


def _tell(line: str) -> None:
    guard()
    if _watcher is not None:
        with contextlib.suppress(OSError):
            os.write(_watcher.pipe, os.fsencode(line + "\n"))


def tell_group(process: subprocess.Popen[bytes]) -> None:
    """Name a process group that was started, for systems that do not show environments."""
    _tell(f"group {process.pid}")


def forget_group(process: subprocess.Popen[bytes]) -> None:
    """Take back what `tell_group` named: it has ended, and its number may be another's soon."""
    _tell(f"-group {process.pid}")


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Make a folder that is gone after the block, or when this process is."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        _tell(f"folder {name}")
        yield Path(name)


def stay_guarded_over_exec() -> None:
    """Keep the watcher where this process is about to become another program."""
    if _watcher is not None:
        os.set_inheritable(_watcher.pipe, True)


def start_worker() -> None:
    """Begin a worker process of a pool: it ends with its parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# Signals ------------------------------------------------------------------------------------

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


@contextmanager
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
        # A closing terminal sends several at once; who asks again later means at once.
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
