"""Where the client apps of a simulation run: threads of this process, or processes of its kind.

Worker processes are forks of this one, made when the first message comes: what an app has loaded by
then is there at once, and shared. They live as long as the simulation, and end with this process,
however it ends. Nothing here is private to Flower.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import queue
import random
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedkit.core import supervise
from fedkit.core.errors import ConfigError, FleetError

Backend = Literal["auto", "processes", "threads", "ray"]
"""What runs the devices of a simulation through Flower.

`processes` share no interpreter lock, and models that train on torch are trained side by side.
`threads` need nothing of the system. `ray` is Flower's own, and the only one that reaches other
machines. `auto` is processes where forks are safe beside threads, on Linux, and threads elsewhere.
"""

_PATIENCE = 5.0  # Seconds for a worker process to end by itself.


class Workers(Protocol):
    """What client apps run in; `answer` is called from several threads at a time."""

    def answer(self, message: Message, context: Context) -> tuple[Message, Context]:
        """Return what the app replies, and the context that it leaves.

        Raises:
            Exception: What the app raised.
            FleetError: The process that it ran in has ended.
            GivenUpError: `stop` was called.
        """

    def stop(self) -> None:
        """End what was started; what is being computed is given up."""


def resolved(name: str, accelerator: str = "cpu") -> Backend:
    """Return a backend by its name, and what `auto` is here.

    Devices share an accelerator in threads of one process, where they take turns: a process that
    is forked beside one cannot use it.

    Args:
        name: Of the backend.
        accelerator: Of the run; another than the processor needs threads, or Ray.

    Raises:
        ConfigError: There is no such backend, or it does not know accelerators.
    """
    if name not in get_args(Backend):
        raise ConfigError(f"backend is {name!r}; choose one of {', '.join(get_args(Backend))}")
    if accelerator != "cpu" and name in ("auto", "processes"):
        if name == "processes":
            raise ConfigError(
                f"backend is 'processes', which are forks, and accelerator {accelerator!r} cannot "
                "be used in a fork; take backend threads, where devices share it"
            )
        return "threads"
    if name == "auto":
        return "processes" if sys.platform == "linux" else "threads"
    return cast(Backend, name)


class ThreadWorkers:
    """Runs an app in the threads that call; it must bear several at a time."""

    def __init__(self, app: ClientApp) -> None:
        self._app = app

    def answer(self, message: Message, context: Context) -> tuple[Message, Context]:
        """See `Workers.answer`."""
        return self._app(message, context), context

    def stop(self) -> None:
        """See `Workers.stop`; the threads are the caller's."""


class GivenUpError(Exception):
    """Nobody needs an answer any more."""


class AppError(Exception):
    """A client app raised something in another process; the text is its message."""


class ProcessWorkers:
    """Runs an app in processes, forked from this one at the first message.

    Args:
        app: The app.
        count: Of processes.
        log: File for what they print; None prints it as this process would.
    """

    def __init__(self, app: ClientApp, count: int, log: Path | None = None) -> None:
        self._app, self._count, self._log = app, count, log
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._all: set[_Worker] = set()
        self._starting, self._stopped = threading.Lock(), False

    def answer(self, message: Message, context: Context) -> tuple[Message, Context]:
        """See `Workers.answer`."""
        worker = self._free()
        try:
            answer = worker.ask(message, context)
        except (EOFError, OSError):
            with self._starting:
                self._all.discard(worker)
            if self._stopped:
                raise GivenUpError("the simulation ended") from None
            raise FleetError(
                f"the worker process of device {context.node_config.get('partition-id', '?')} "
                f"ended ({worker.how_it_ended()}) before it answered; see whether memory was short"
            ) from None
        self._idle.put(worker)
        if isinstance(answer, str):
            raise AppError(answer)
        return answer

    def _free(self) -> _Worker:
        """Return a worker that nobody uses, a new one where one has ended."""
        with self._starting, contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        with self._starting:
            if len(self._all) < self._count and not self._stopped:
                self._all.add(worker := _Worker(self._app, self._log, self._all))
                return worker
        if self._stopped:
            raise GivenUpError("the simulation ended")
        return self._idle.get()

    def stop(self) -> None:
        """See `Workers.stop`."""
        self._stopped = True
        with self._starting:
            workers = set(self._all)
        for worker in workers:
            worker.stop()


class _Worker:
    """One process.

    Args:
        app: What it runs.
        log: File for what it prints, or None.
        others: Whose ends of pipes it closes: else they would not hear of this process's end.
    """

    def __init__(self, app: ClientApp, log: Path | None, others: set[_Worker]) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        inherited = [self._ours, *(worker._ours for worker in others)]
        self._process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(app, theirs, log, inherited), daemon=True
        )
        with warnings.catch_warnings():  # of forks beside threads: see `_serve`
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        theirs.close()

    def ask(self, message: Message, context: Context) -> tuple[Message, Context] | str:
        """Have a message answered; return what an app raised as a text."""
        _send(self._ours, (message, context))
        return cast("tuple[Message, Context] | str", self._ours.recv())

    def how_it_ended(self) -> str:
        """Say what ended it."""
        self._process.join(_PATIENCE)
        code = self._process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.join(_PATIENCE)


def _serve(
    app: ClientApp, connection: Connection, log: Path | None, inherited: list[Connection]
) -> None:
    """Answer messages until nobody asks any more.

    Of other threads nothing is left after a fork but the locks that they held, so what this needs
    is made anew: output, and torch's threads, which do not outlive a fork. And no two processes may
    draw the same random numbers.
    """
    for other in inherited:
        other.close()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    supervise.start_worker()
    if log is not None:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(file), "w", buffering=1) for file in (1, 2))
    random.seed()
    np.random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
        torch.seed()
    while True:
        try:
            message, context = connection.recv()
        except EOFError:
            return
        try:
            _send(connection, _answered(app, message, context))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            _send(connection, f"its reply cannot be sent to another process: {error}")


class _Pickler(pickle.Pickler):
    """Pickles what Flower's arrays may hold: bytes of others, seen through a memoryview."""

    def reducer_override(self, thing: Any) -> Any:
        """Pickle a view as the bytes that it shows, all else as usual."""
        return (bytes, (bytes(thing),)) if isinstance(thing, memoryview) else NotImplemented


def pickled(thing: Any) -> bytes:
    """Return what `pickle.loads` makes the same of, of whatever Flower's records hold."""
    stream = io.BytesIO()
    _Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(thing)
    return stream.getvalue()


def _send(connection: Connection, thing: Any) -> None:
    connection.send_bytes(pickled(thing))


def _answered(app: ClientApp, message: Message, context: Context) -> tuple[Any, ...] | str:
    try:
        return app(message, context), context
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


KINDS: dict[Backend, Callable[[ClientApp, int, Path | None], Workers]] = {
    "threads": lambda app, count, log: ThreadWorkers(app),
    "processes": ProcessWorkers,
}
"""Backend -> its workers for an app; Ray is Flower's own."""
