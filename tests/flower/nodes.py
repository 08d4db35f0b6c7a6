"""Small client apps and simulations of them."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedkit.flower.runtime import Simulated
from fedkit.flower.workers import Backend

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Do what the message says."""
    order = str(message.content["order"]["order"])
    return reply(message, **ORDERS[order](context))


def reply(message: Message, **values: Any) -> Message:
    return Message(RecordDict({"answer": ConfigRecord(values)}), reply_to=message)


def _count(context: Context) -> dict[str, Any]:
    before = context.state.get("count")
    count = (int(before["n"]) if before is not None else 0) + 1  # type: ignore[arg-type]
    context.state["count"] = ConfigRecord({"n": count})
    context.state["arrays"] = ArrayRecord([np.arange(count, dtype=np.float32)])
    return {"count": count, "device": context.node_config["partition-id"], "pid": os.getpid()}


def _raise(context: Context) -> dict[str, Any]:
    raise ValueError("the sensor is unplugged")


def _raise_what_cannot_be_pickled(context: Context) -> dict[str, Any]:
    class OddError(Exception):
        lock = threading.Lock()

    raise OddError("odd")


def _kill(context: Context) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _draw(context: Context) -> dict[str, Any]:
    return {"python": random.random(), "numpy": float(np.random.random()), "pid": os.getpid()}


def _tell(context: Context) -> dict[str, Any]:
    print("told", flush=True)
    print("warned", file=sys.stderr, flush=True)
    return {"threads": threading.active_count()}


def _sleep(context: Context) -> dict[str, Any]:
    time.sleep(30)
    return {}


def _spoil(context: Context) -> dict[str, Any]:
    vars(context)["lock"] = threading.Lock()
    return {}


ORDERS = {
    "count": _count,
    "raise": _raise,
    "raise oddly": _raise_what_cannot_be_pickled,
    "kill": _kill,
    "exit": lambda context: os._exit(3),
    "leave": lambda context: sys.exit("gone"),
    "odd context": _spoil,
    "draw": _draw,
    "tell": _tell,
    "sleep": _sleep,
}


def simulated(backend: Backend, nodes: int = 4, workers: int = 2, **changes: Any) -> Simulated:
    return Simulated(app, nodes, {"key": "value"}, backend, workers, **changes)


def orders(order: str, nodes: Iterable[int]) -> list[Message]:
    return [
        Message(RecordDict({"order": ConfigRecord({"order": order})}), node, "query")
        for node in nodes
    ]


def send(grid: Grid, order: str) -> None:
    """Have an order carried out, and wait for no reply."""
    grid.push_messages(orders(order, grid.get_node_ids()))


def ask(grid: Grid, order: str, nodes: Iterable[int] | None = None) -> list[Message]:
    """Have an order carried out; return the replies by node."""
    asked = orders(order, grid.get_node_ids() if nodes is None else nodes)
    replies = grid.send_and_receive(asked, timeout=60)
    return sorted(replies, key=lambda message: message.metadata.src_node_id)


def answers(replies: Iterable[Message], key: str) -> list[Any]:
    return [message.content["answer"][key] for message in replies]
