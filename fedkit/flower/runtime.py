"""Flower's simulation runtime with workers of our own: all that is private in it.

Flower knows one backend, Ray: seconds until the first message, hundreds of MB per worker, and a
question per node and tenth of a second. Here messages go from Flower's state to workers as they are
stored. `install` does that for `flwr run`, in the process that simulates; `simulation` needs no
SuperLink. Both stand on names of Flower that are not public. `PRIVATE` lists them, flwr is pinned,
and tests try them with the pinned release and another.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import pickle
import queue
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedkit.core.side_by_side import cores
from fedkit.core.spill import Packing, Spill
from fedkit.flower.workers import KINDS, Backend, GivenUpError, Workers, pickled, resolved

BACKEND_KEY, WORKERS_KEY, ACCELERATOR_KEY = "backend", "workers", "accelerator"
"""Keys of a run-config: what devices run in, how many at the same time (0: one per core), and where
torch computes."""

_VCE = "flwr.server.superlink.fleet.vce.vce_api"
_HERE = "fedkit_here"
_GRID = "flwr.superlink.grid.inmemory_grid"
_IDLE_SECONDS = 1.0
_COMPLETE_SECONDS = 2.0
"""Without a new node for so long, Flower has made all; it makes them before it looks at an app."""
_log = logging.getLogger("flwr")


PRIVATE = {
    "FLWR_IN_MEMORY_DB_NAME": "flwr.supercore.constant",
    "InMemoryGrid": "flwr.superlink.grid",
    "LinkStateFactory": "flwr.server.superlink.linkstate",
    "NOOP_FEDERATION_ID": "flwr.supercore.constant",
    "NUM_PARTITIONS_KEY": "flwr.common.constant",
    "NoOpFederationManager": "flwr.superlink.federation",
    "ObjectStoreFactory": "flwr.supercore.object_store",
    "PARTITION_ID_KEY": "flwr.common.constant",
    "Run": "flwr.supercore.run",
    "RunRecord": "flwr.server.superlink.linkstate.in_memory_linkstate",
    "SUPERLINK_NODE_ID": "flwr.common.constant",
    "Task": "flwr.proto.task_pb2",
    "TaskIdentity": "flwr.supercore.task_identity",
    "run_api": _VCE,
    "_register_nodes": _VCE,
}
"""Name -> module of Flower that has it: what is used here and not public."""


def _private(name: str) -> Any:
    return getattr(importlib.import_module(PRIVATE[name]), name)


# Messages ------------------------------------------------------------------------------------


class Here:
    """What the server of a simulation in this process may know: devices, and what is answered.

    Attributes:
        partitions: Which device each node is.
    """

    def __init__(self, partitions: Mapping[int, int]) -> None:
        self.partitions = dict(partitions)
        self._open: set[str] = set()
        self._changed = threading.Condition()

    def expect(self, message: str) -> None:
        """Note a message, before the one who sent it can ask for its answer."""
        with self._changed:
            self._open.add(message)

    def add(self, message: str) -> None:
        """Note the answer to a message."""
        with self._changed:
            self._open.discard(message)
            self._changed.notify_all()

    def has_answer(self, message: str) -> bool:
        """Return whether a message was answered."""
        with self._changed:
            return message not in self._open

    def wait(self, seconds: float) -> None:
        """Wait until every message is answered, at most so long.

        A thread that takes answers as they come would hold the interpreter's lock each time that a
        device's code comes back from C for it, and a round would take twice as long.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._open, seconds)


def here(grid: Grid) -> Here | None:
    """Return what is known of a simulation on our workers; None where the grid must be asked."""
    found = getattr(getattr(grid, "state", None), _HERE, None)
    return found if isinstance(found, Here) else None


def is_simulated(grid: Grid) -> bool:
    """Whether the nodes of a grid are simulated: there will be no others than there are."""
    return type(grid).__module__ == _GRID


def simulated_nodes(grid: Grid) -> int | None:
    """Return how many nodes a simulation has, once Flower has made all; None for real nodes."""
    if not is_simulated(grid):
        return None
    count, since = -1, time.monotonic()
    while (known := here(grid)) is None and time.monotonic() - since < _COMPLETE_SECONDS:
        if (now := len(list(grid.get_node_ids()))) != count:
            count, since = now, time.monotonic()
        time.sleep(_COMPLETE_SECONDS / 20)
    return count if known is None else len(known.partitions)


class Contexts(Protocol):
    """What simulated nodes know and remember."""

    def of(self, node: int) -> Context:
        """Return the context of a node."""

    def keep(self, node: int, context: Context) -> None:
        """Keep what a node has made of its context."""


class _Stores:
    """The contexts that Flower keeps."""

    def __init__(self, stores: Mapping[int, Any], run: int) -> None:
        self._stores, self._run = stores, run

    def of(self, node: int) -> Context:
        context: Context = self._stores[node].retrieve_context(self._run)
        return context

    def keep(self, node: int, context: Context) -> None:
        self._stores[node].update_context(self._run, context)


class _Dispatch:
    """Hands messages from Flower's state to workers, and their replies back.

    Args:
        state: Flower's state, in the memory of this process.
        partitions: Which device each of its nodes is.
        contexts: Of its nodes.
        workers: What answers.
        count: How many messages are answered at the same time.
        spent: Told the seconds of each answer.
    """

    def __init__(
        self,
        state: Any,
        partitions: Mapping[int, int],
        contexts: Contexts,
        workers: Workers,
        count: int,
        spent: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._state, self._contexts, self._workers = state, contexts, workers
        self._spent, self._count = spent, count
        self._todo: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._taken, self._taking = set[str](), threading.Lock()
        self._here = Here(partitions)

    def start(self) -> None:
        """Answer from now on, also what was asked before."""
        store = self._state.store_message_ins

        def stored(message: Message) -> str | None:
            taken: str | None = store(message)
            if taken is not None:
                self._take(message)
            return taken

        setattr(self._state, _HERE, self._here)
        self._state.store_message_ins = stored
        self._look()
        # Daemons, so that a process that is asked to end does not wait for a device's training.
        for _ in range(self._count):
            threading.Thread(target=self._work, daemon=True).start()

    def _look(self) -> None:
        """Take what was stored before `start`, or in its moment, and forget what is done."""
        there = dict(self._state.message_ins_store)
        with self._taking:
            self._taken &= there.keys()
        for message in there.values():
            self._take(message)

    def _take(self, message: Message) -> None:
        """Have a message answered, once."""
        with self._taking:
            if (asked := message.metadata.message_id) in self._taken:
                return
            self._taken.add(asked)
        self._here.expect(asked)
        self._todo.put(message)

    def stop(self) -> None:
        """Answer no more."""
        for _ in range(self._count):
            self._todo.put(None)
        self._workers.stop()

    def _work(self) -> None:
        while (message := self._next()) is not None:
            asked, began = message.metadata.message_id, time.perf_counter()
            try:
                reply = self._answer(message)
            except GivenUpError:
                return
            self._spent(time.perf_counter() - began)
            reply.metadata.__dict__["_message_id"] = f"{asked}-reply"
            self._state.store_message_res(reply)
            self._here.add(asked)

    def _next(self) -> Message | None:
        """Return what is to be answered next; None at the end."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._todo.get(timeout=_IDLE_SECONDS)
            self._look()

    def _answer(self, message: Message) -> Message:
        """Return the reply to a message, an error where the app has none."""
        node = message.metadata.dst_node_id
        try:
            reply, context = self._workers.answer(message, self._contexts.of(node))
            self._contexts.keep(node, context)
            return reply
        except GivenUpError:
            raise
        except Exception as error:
            _log.error(traceback.format_exc())
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code, f"{type(error).__name__}: {error}"), reply_to=message)


@contextmanager
def _answering(dispatch: _Dispatch) -> Iterator[None]:
    dispatch.start()
    try:
        yield
    finally:
        dispatch.stop()


# `flwr run` ----------------------------------------------------------------------------------


def install() -> None:
    """Let the simulation in this process, if it is one, go by its run-config's backend.

    A Flower app calls it where its ClientApp is made: `flwr run` loads that before it chooses what
    runs it. Key `backend` of the run-config is one of `Backend`, `workers` how many devices compute
    at the same time (0: one per core); without a backend it is Ray.
    """
    vce = sys.modules.get(_VCE)
    if vce is None or getattr(vce, _HERE, False):
        return
    if not hasattr(vce, "run_api"):
        print("warning: this release of Flower runs simulations on Ray alone", flush=True)
        return
    setattr(vce, _HERE, True)
    vce.run_api = functools.partial(_run_api, vce.run_api)  # type: ignore[attr-defined]


def _run_api(
    flowers: Callable[..., None],
    app_fn: Callable[[], ClientApp],
    backend_fn: Callable[[], Any],
    nodes_mapping: Mapping[int, int],
    state_factory: Any,
    node_info_stores: Mapping[int, Any],
    f_stop: threading.Event,
    metrics: Any,
) -> None:
    """Do what `vce_api.run_api` does, on workers of the run's choice, until `f_stop` is set."""
    store = next(iter(node_info_stores.values()))
    (run,) = store.run_infos
    keys = store.retrieve_context(run).run_config
    try:
        accelerator = str(keys.get(ACCELERATOR_KEY, "cpu"))
        if (backend := resolved(str(keys.get(BACKEND_KEY, "ray")), accelerator)) == "ray":
            given = (nodes_mapping, state_factory, node_info_stores, f_stop, metrics)
            flowers(app_fn, backend_fn, *given)
            return
        count = int(keys.get(WORKERS_KEY, 0)) or cores()
        workers = KINDS[backend](app_fn(), count, None)
        contexts, spent = _Stores(node_info_stores, run), metrics.add_clientapp_runtime
        state = state_factory.state()
        with _answering(_Dispatch(state, nodes_mapping, contexts, workers, count, spent)):
            f_stop.wait()
    finally:
        f_stop.set()


# Without a SuperLink -------------------------------------------------------------------------


@dataclass(frozen=True)
class Simulated:
    """What a simulation without a SuperLink runs on.

    Attributes:
        app: What its nodes run.
        nodes: How many.
        run_config: What apps find in their context.
        backend: threads or processes.
        workers: Nodes that compute at the same time.
        log: File for what worker processes print; None prints it as this process would.
    """

    app: ClientApp
    nodes: int
    run_config: Mapping[str, str | int | float | bool]
    backend: Backend
    workers: int
    log: Path | None = None


_STATES = Packing[RecordDict](
    lambda state: sum(len(a.data) for r in state.array_records.values() for a in r.values()),
    pickled,
    pickle.loads,
)


class _Made:
    """Contexts made when they are asked for; states that memory cannot hold are in files."""

    def __init__(self, given: Simulated, run: int, partitions: Mapping[int, int]) -> None:
        self._given, self._run, self._partitions = given, run, partitions
        self._states = Spill(_STATES)

    def of(self, node: int) -> Context:
        given = self._given
        about: UserConfig = {
            _private("PARTITION_ID_KEY"): self._partitions[node],
            _private("NUM_PARTITIONS_KEY"): given.nodes,
        }
        state = self._states.get(node) or RecordDict()
        return Context(self._run, node, about, state, dict(given.run_config))

    def keep(self, node: int, context: Context) -> None:
        self._states.put(node, context.state)


@contextmanager
def simulation(given: Simulated) -> Iterator[Grid]:
    """Simulate nodes in this process, with Flower's messages, state and grid; one at a time.

    Yields:
        What a ServerApp talks to nodes through.
    """
    run = _private("Run").create_empty(secrets.randbits(63))
    run.primary_task_id, run.federation_id = secrets.randbits(63), _private("NOOP_FEDERATION_ID")
    identity = _private("TaskIdentity")
    identity.task_id, identity.run_id = run.primary_task_id, run.run_id
    identity.node_id = _private("SUPERLINK_NODE_ID")
    factory = _private("LinkStateFactory")(
        _private("FLWR_IN_MEMORY_DB_NAME"),
        _private("NoOpFederationManager")(),
        _private("ObjectStoreFactory")(),
    )
    state = factory.state()
    state.run_ids[run.run_id] = _private("RunRecord")(run=run)
    state.task_store[run.primary_task_id] = _private("Task")(
        task_id=run.primary_task_id, run_id=run.run_id
    )
    partitions = _private("_register_nodes")(given.nodes, factory)
    grid = _private("InMemoryGrid")(factory)
    grid.set_run(run)
    workers = KINDS[given.backend](given.app, given.workers, given.log)
    contexts = _Made(given, run.run_id, partitions)
    with _answering(_Dispatch(state, partitions, contexts, workers, given.workers)):
        yield grid
