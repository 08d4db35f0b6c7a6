"""Whatever ends a command ends all that it started.

`guard` is for the end that nobody can catch: a process beside this one (`fedkit.core.watch`)
outlives it by a moment, and kills what it started. Ends that can be caught are
`fedkit.core.signals`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedkit.core import watch


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
    # Not marked: it must outlive the others, and the process that started this one has its own.
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


def folder_of(owner: object, prefix: str) -> Path:
    """Make a folder that is gone with its owner, or when this process is."""
    path = tempfile.mkdtemp(prefix=prefix)
    weakref.finalize(owner, shutil.rmtree, path, ignore_errors=True)
    _tell(f"folder {path}")
    return Path(path)


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
